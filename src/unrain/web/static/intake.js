// What is dropped or pasted: files, and the files in folders.

const PICTURES = /\.(jpe?g|jfif|png|apng|webp|tiff?|bmp|avif|hei[cf]|hif|jxl|dng|cr2|cr3|nef|arw|orf|rw2|raf|gif)$/i;
const VIDEOS = /\.(mp4|m4v|mov|mkv|webm|avi|m?ts|m2ts|mpe?g|vob|wmv|asf|flv|3gp|3g2|ogv|gif|apng)$/i;

/** Whether a file goes the way of videos: animated GIF and PNG do too. */
export const isVideo = (file) => VIDEOS.test(file.name) || file.type.startsWith("video/");

/** The files of a drop or paste, those in folders sorted by their paths, and how many others were left out. */
export async function filesOf(transfer) {
  // Entries are only there until the event is over.
  const entries = [...(transfer?.items ?? [])].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const folders = entries.filter(({ isDirectory }) => isDirectory);
  const names = new Set(folders.map(({ name }) => name));
  const files = [...(transfer?.files ?? [])].filter(({ name }) => !names.has(name));
  const found = [];
  for (const folder of folders) await walk(folder, found);
  found.sort((one, other) => one.path.localeCompare(other.path, undefined, { numeric: true }));
  const taken = found.map(({ file }) => file).filter((file) => PICTURES.test(file.name) || isVideo(file));
  return { files: [...files, ...taken], left: found.length - taken.length, folders: folders.length };
}

async function walk(folder, found) {
  const reader = folder.createReader();
  for (;;) {
    // Browsers hand them out in parts.
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)).catch(() => []);
    if (!part.length) return;
    for (const entry of part) {
      if (entry.name.startsWith(".")) continue;
      if (entry.isDirectory) await walk(entry, found);
      else {
        const file = await new Promise((resolve) => entry.file(resolve, () => resolve(null)));
        if (file) found.push({ path: entry.fullPath, file });
      }
    }
  }
}
