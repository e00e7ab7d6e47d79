// The page: a list of pictures, at most two of them at the server at once, and a viewer for the chosen one.

import { pack, unpack } from "./zip.js";

const AT_ONCE = 2;
const MOST_RECURSIONS = 8;
const ASK_EVERY = 400; // milliseconds
// Most pixels that are computed for the screen; at actual size what a phone's canvas holds.
const MIXED_PIXELS = { fitted: 2e6, actual: 16e6 };

const $ = (id) => document.getElementById(id);
const pictures = [];
let limits = { bytes: 25e6, pixels: 40e6, recursions: MOST_RECURSIONS };
let models = [];
let chosen = null;
let atWork = 0;
let urlOfFile = null;
let paint = null; // draws what is on the stage at the chosen strength

// ------------------------------------------------------------------------------------------------ start

async function start() {
  const here = ["localhost", "[::1]"].includes(location.hostname) || location.hostname.startsWith("127.");
  $("promise").textContent = here
    ? "Takes the rain out of pictures. They stay on this computer."
    : `Takes the rain out of pictures. They go to ${location.hostname} and are not kept there.`;
  try {
    const [found, allowed, health] = await Promise.all(["api/models", "api/limits", "healthz"].map(ask));
    models = found;
    limits = allowed;
    $("version").textContent = `unrain ${health.version}`;
  } catch {
    complain("The server does not answer. Is it still running?");
    return;
  }
  $("model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  $("limits").textContent =
    `JPEG, PNG, WebP, TIFF, BMP, AVIF, HEIC; up to ${limits.bytes / 1e6} MB and ${limits.pixels / 1e6} megapixels each`;
  showModel();
}

async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(answer.status);
  return answer.json();
}

function showModel() {
  const model = models[$("model").selectedIndex];
  $("model-hint").textContent = model.summary ?? "";
  const most = model.recursive ? Math.min(MOST_RECURSIONS, limits.recursions) : 1;
  const before = $("recursions").value;
  const numbers = Array.from({ length: most }, (_, index) => index + 1);
  $("recursions").replaceChildren(
    ...numbers.map((count) => new Option(count === model.recursions ? `${count} (default)` : count, count)),
  );
  $("recursions").value = before && before <= most ? before : model.recursions;
  $("recursions").disabled = most === 1;
  refresh();
}

const settings = () => ({ model: $("model").value, recursions: $("recursions").value });
const same = (one, other) => one.model === other.model && one.recursions === other.recursions;

// --------------------------------------------------------------------------------------------- pictures

function add(files) {
  complain("");
  for (const file of files) {
    const element = $("entry").content.firstElementChild.cloneNode(true);
    const picture = { file, element, state: "waiting", strength: 100, shown: null, result: null, urls: [URL.createObjectURL(file)] };
    pictures.push(picture);
    element.querySelector(".name").textContent = file.name;
    element.querySelector(".open").addEventListener("click", () => choose(picture));
    const redo = element.querySelector(".redo");
    redo.setAttribute("aria-label", `Work on ${file.name} again`);
    redo.addEventListener("click", () => queue(picture));
    const remove = element.querySelector(".remove");
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.addEventListener("click", () => forget(picture));
    $("pictures").append(element);
    picture.shown = look(picture);
    queue(picture);
  }
  if (!chosen && pictures.length) choose(pictures[0]);
  refresh();
}

/** Shows the thumbnail; false if the browser cannot show this kind of file. */
async function look(picture) {
  const thumb = picture.element.querySelector(".thumb");
  thumb.src = picture.urls[0];
  try {
    await thumb.decode();
    return true;
  } catch {
    thumb.removeAttribute("src");
    return false;
  }
}

function queue(picture) {
  picture.settings = settings();
  if (picture.file.size > limits.bytes) {
    fail(picture, `larger than ${limits.bytes / 1e6} MB, the limit of this server`);
    return;
  }
  set(picture, "waiting", "Waiting");
  next();
}

function forget(picture) {
  const at = pictures.indexOf(picture);
  pictures.splice(at, 1);
  picture.request?.abort();
  picture.element.remove();
  picture.state = "removed";
  picture.urls.forEach((url) => URL.revokeObjectURL(url));
  const neighbour = pictures[Math.min(at, pictures.length - 1)];
  if (chosen === picture) {
    chosen = null;
    if (neighbour) choose(neighbour);
  }
  (neighbour?.element.querySelector(".open") ?? $("files")).focus();
  say(`${picture.file.name} removed`);
  refresh();
}

function set(picture, state, status, share) {
  picture.state = state;
  picture.element.dataset.state = state;
  picture.element.querySelector(".status").textContent = status;
  const bar = picture.element.querySelector(".progress");
  bar.setAttribute("aria-label", `${picture.file.name}: ${status}`);
  if (share === undefined) bar.removeAttribute("value");
  else bar.value = share;
  if (picture === chosen) show();
  refresh();
}

function fail(picture, message) {
  set(picture, "failed", message);
  say(`${picture.file.name}: ${message}`);
}

// ----------------------------------------------------------------------------------------------- network

function next() {
  while (atWork < AT_ONCE) {
    const picture = pictures.find(({ state }) => state === "waiting");
    if (!picture) return;
    atWork++;
    picture.state = "sending";
    work(picture).finally(() => {
      atWork--;
      next();
    });
  }
}

async function work(picture) {
  const gone = () => picture.state === "removed";
  try {
    const shown = await picture.shown;
    for (;;) {
      if (gone()) return;
      const answer = await post(picture, shown);
      if (gone()) return;
      if (answer.status === 200) {
        await finish(picture, answer, shown);
        return;
      }
      const { detail } = await answer.json();
      if (answer.status !== 429) {
        // The name is already shown above the message.
        fail(picture, detail.startsWith(`${picture.file.name}: `) ? detail.slice(picture.file.name.length + 2) : detail);
        return;
      }
      for (let left = Number(answer.headers.get("Retry-After")) || 5; left > 0 && !gone(); left--) {
        set(picture, "sending", `The server is busy, trying again in ${left} s`);
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    }
  } catch (error) {
    if (!gone()) fail(picture, error.message);
  }
}

/** Sends a picture and shows its progress; only XMLHttpRequest reports the progress of an upload. */
function post(picture, shown) {
  const ticket = Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16)).join("-");
  const form = new FormData();
  const fields = { ...picture.settings, ticket, difference: true, preview: !shown };
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  form.append("picture", picture.file);
  set(picture, "sending", "Sending");
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    picture.request = request;
    let timer = 0;
    request.open("POST", "api/derain");
    request.responseType = "blob";
    request.upload.addEventListener("progress", ({ loaded, total }) => {
      set(picture, "sending", "Sending", loaded / total);
    });
    request.upload.addEventListener("load", () => {
      set(picture, "working", "Removing the rain");
      timer = setInterval(() => follow(picture, ticket, request), ASK_EVERY);
    });
    request.addEventListener("loadend", () => clearInterval(timer));
    request.addEventListener("load", () => {
      const headers = new Headers();
      for (const name of ["Retry-After", "Unrain-Recursions", "Unrain-Seconds", "Unrain-Notes", "Unrain-Hardly-Any-Rain"]) {
        const value = request.getResponseHeader(name);
        if (value !== null) headers.set(name, value);
      }
      resolve(new Response(request.response, { status: request.status, headers }));
    });
    const lost = () => reject(new Error("the server cannot be reached, is it still running?"));
    request.addEventListener("error", lost);
    request.addEventListener("abort", lost);
    request.send(form);
  });
}

async function follow(picture, ticket, request) {
  const state = await ask(`api/progress/${ticket}`).catch(() => null);
  if (!state || request.readyState > XMLHttpRequest.OPENED || picture.request !== request) return;
  if (picture.state !== "working") return;
  if (state.ahead) set(picture, "working", `Waiting, ${state.ahead} before it`);
  else if (state.done) set(picture, "working", `Removing the rain, ${percent(state)}`, state.done / state.total);
  else set(picture, "working", "Removing the rain");
}

const percent = ({ done, total }) => `${Math.round((100 * done) / total)} %`;

async function finish(picture, answer, shown) {
  const files = await unpack(await answer.blob());
  const names = [...files.keys()];
  const name = names.find((each) => /_derained\.\w+$/.test(each));
  picture.urls.splice(1).forEach((url) => URL.revokeObjectURL(url));
  const url = (each, type) => {
    picture.urls.push(URL.createObjectURL(files.get(each).slice(0, undefined, type)));
    return picture.urls.at(-1);
  };
  picture.result = {
    name,
    blob: files.get(name),
    difference: files.get("difference.png"),
    beforeShown: shown ? picture.urls[0] : url("preview_before.jpg", "image/jpeg"),
    afterShown: shown ? url(name, picture.file.type) : url("preview_after.jpg", "image/jpeg"),
    recursions: Number(answer.headers.get("Unrain-Recursions")),
    seconds: Number(answer.headers.get("Unrain-Seconds")),
    hardlyAny: answer.headers.get("Unrain-Hardly-Any-Rain") === "true",
    notes: JSON.parse(answer.headers.get("Unrain-Notes") ?? "[]"),
    settings: picture.settings,
  };
  if (!shown) picture.element.querySelector(".thumb").src = picture.result.beforeShown;
  const hardlyAny = picture.result.hardlyAny ? ", hardly any rain found" : "";
  set(picture, "done", `Done in ${picture.result.seconds.toFixed(1)} s${hardlyAny}`);
  const done = pictures.filter(({ state }) => state === "done").length;
  say(`${picture.file.name}: done${hardlyAny}, ${done} of ${pictures.length}`);
}

// ------------------------------------------------------------------------------------------------ viewer

function choose(picture) {
  chosen = picture;
  for (const { element } of pictures) {
    const open = element.querySelector(".open");
    if (element === picture.element) open.setAttribute("aria-current", "true");
    else open.removeAttribute("aria-current");
  }
  $("stage").dataset.key = "";
  show();
}

/** Shows the chosen picture on the stage, unless it is there already. */
function show() {
  const { file, result, state, shown } = chosen;
  const view = document.querySelector("input[name=view]:checked").value;
  $("title").textContent = file.name;
  $("views").disabled = !result;
  $("download").hidden = !result;
  $("size").hidden = !result;
  $("strengths").hidden = !result;
  $("stage").dataset.state = state;
  if (result) {
    $("download").setAttribute("aria-label", `Download ${view === "rain" ? "the rain layer of " : ""}${file.name}`);
    showStrength();
  }
  const key = `${chosen.urls[0]} ${result?.afterShown} ${result ? view : ""} ${state === "failed"}`;
  if ($("stage").dataset.key === key) return;
  $("stage").dataset.key = key;
  $("facts").textContent = "";
  paint = null;
  if (!result) {
    const now = chosen;
    shown.then((visible) => {
      if (chosen !== now || now.result) return;
      $("stage").replaceChildren(visible ? image(now.urls[0], `${file.name}, with its rain`) : blank(now));
    });
    return;
  }
  const frame = document.createElement("div");
  frame.className = "frame";
  if (view === "compare") comparison(frame, chosen);
  else if (view === "result") frame.append(mixed(frame, chosen, `${file.name} without its rain`));
  else frame.append(mixed(frame, chosen, `What was removed from ${file.name}`, true));
  $("stage").replaceChildren(frame);
  const recursions = `${result.recursions} recursion${result.recursions === 1 ? "" : "s"}`;
  const facts = [`${result.settings.model}, ${recursions}, ${result.seconds.toFixed(1)} s`, ...result.notes];
  if (result.hardlyAny) facts.unshift("Hardly any rain found");
  $("facts").textContent = facts.join(". ");
}

function image(source, text) {
  const element = new Image();
  element.src = source;
  element.alt = text;
  fit(element, element);
  return element;
}

function blank({ state }) {
  const element = document.createElement("p");
  element.textContent = state === "failed" ? "Nothing to show." : "This browser shows the picture once it is done.";
  return element;
}

function comparison(frame, picture) {
  const { name } = picture.file;
  const slider = document.createElement("img-comparison-slider");
  const before = new Image();
  before.slot = "first";
  before.alt = `${name} before, with its rain`;
  before.src = picture.result.beforeShown;
  const after = mixed(frame, picture, `${name} after, without its rain`);
  after.slot = "second";
  const handle = document.createElement("span");
  handle.slot = "handle";
  handle.className = "handle";
  slider.append(before, after, handle);
  slider.setAttribute("role", "slider");
  slider.setAttribute("aria-label", "Part of the picture that is shown as it was before");
  slider.setAttribute("aria-valuemin", "0");
  slider.setAttribute("aria-valuemax", "100");
  const tell = () => {
    slider.setAttribute("aria-valuenow", Math.round(slider.value));
    slider.setAttribute("aria-valuetext", `${Math.round(slider.value)} % before`);
  };
  slider.addEventListener("slide", tell);
  // The slider itself handles the left and right arrow keys only.
  const keys = { Home: () => 0, End: () => 100, PageDown: (at) => Math.max(0, at - 10), PageUp: (at) => Math.min(100, at + 10) };
  slider.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    slider.value = keys[event.key](slider.value);
    tell();
  });
  tell();
  frame.append(slider, badge("before", "Before"), badge("after", "After"));
}

function badge(place, text) {
  const element = document.createElement("span");
  element.className = `badge ${place}`;
  element.setAttribute("aria-hidden", "true");
  element.textContent = text;
  return element;
}

/** Passes the size of a picture to the style sheet once it is known. */
async function fit(picture, frame) {
  await picture.decode().catch(() => {});
  frame.style.setProperty("--width", picture.naturalWidth || 1);
  frame.style.setProperty("--height", picture.naturalHeight || 1);
  frame.classList.add("fitted");
}

// ---------------------------------------------------------------------------------------------- strength

/** A result, or its rain layer, that follows the strength: the image itself at 100 %, else a canvas over it. */
function mixed(frame, picture, text, rain = false) {
  const { beforeShown, afterShown } = picture.result;
  const element = document.createElement("div");
  element.className = "mixed";
  const after = new Image();
  after.alt = rain ? "" : text;
  after.src = afterShown;
  fit(after, frame);
  const canvas = document.createElement("canvas");
  canvas.hidden = true;
  if (rain) {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", text);
    after.classList.add("covered");
  } else canvas.setAttribute("aria-hidden", "true");
  element.append(after, canvas);

  const plain = () => picture.strength === 100 && !rain;
  const most = () => ($("actual").checked ? MIXED_PIXELS.actual : MIXED_PIXELS.fitted);
  let both = null;
  let due = false;
  const draw = async () => {
    while (!plain() && both?.most !== most()) {
      const limit = most();
      both = { most: limit, ...(await samples(beforeShown, afterShown, limit)) };
    }
    due = false;
    canvas.hidden = plain();
    if (plain()) return;
    canvas.width = both.width;
    canvas.height = both.height;
    canvas.getContext("2d").putImageData(mix(both, picture.strength / 100, rain), 0, 0);
  };
  paint = () => {
    if (!due) requestAnimationFrame(draw);
    due = true;
  };
  paint();
  return element;
}

/** The pixels of two images of one size, reduced to at most so many. */
async function samples(before, after, most) {
  const images = await Promise.all([before, after].map(decoded));
  const { naturalWidth, naturalHeight } = images[1];
  const scale = Math.min(1, Math.sqrt(most / (naturalWidth * naturalHeight)));
  const width = Math.max(1, Math.round(naturalWidth * scale));
  const height = Math.max(1, Math.round(naturalHeight * scale));
  const [one, other] = images.map((each) => {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(each, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  });
  return { width, height, before: one, after: other };
}

async function decoded(source) {
  const element = new Image();
  element.src = source;
  await element.decode();
  return element;
}

/** before - strength (before - after), as the server computes it; with `rain` what this takes away. */
function mix({ before, after, width, height }, strength, rain) {
  const mixed = new ImageData(width, height);
  const { data } = mixed; // rounds and clips
  for (let at = 0; at < data.length; at++) data[at] = before[at] - strength * (before[at] - after[at]);
  if (!rain) return mixed;
  for (let at = 0; at < data.length; at++) data[at] = at % 4 === 3 ? 255 : before[at] - data[at];
  return mixed;
}

function showStrength() {
  const text = `${chosen.strength} %`;
  $("strength").value = chosen.strength;
  $("strength").setAttribute("aria-valuetext", text);
  $("strength-shown").textContent = text;
}

/** The file of a result, or of its rain layer, at the strength that is chosen: [name, Blob]. */
async function fileOf(picture, rain = false) {
  const { result, strength } = picture;
  if (strength === 100 && !rain) return [result.name, result.blob];
  const form = new FormData();
  form.append("strength", strength / 100);
  form.append("rain_layer", rain);
  form.append("picture", picture.file);
  form.append("difference", result.difference, "difference.png");
  for (;;) {
    const answer = await fetch("api/strength", { method: "POST", body: form });
    if (answer.ok) {
      const blob = await answer.blob();
      return rain ? [...(await unpack(blob))].find(([name]) => name.endsWith("_rain.png")) : [result.name, blob];
    }
    if (answer.status !== 429) throw new Error((await answer.json()).detail);
    await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(answer.headers.get("Retry-After")) || 5)));
  }
}

async function download() {
  const rain = document.querySelector("input[name=view]:checked").value === "rain";
  await busy($("download"), () => fileOf(chosen, rain));
}

/** Saves the file that is made meanwhile, whose button waits and says so. */
async function busy(button, make) {
  if (button.hasAttribute("aria-disabled")) return;
  const text = button.textContent;
  complain("");
  say("Preparing the download");
  button.setAttribute("aria-disabled", "true");
  button.textContent = "Preparing";
  try {
    const [name, blob] = await make();
    if (urlOfFile) URL.revokeObjectURL(urlOfFile);
    urlOfFile = URL.createObjectURL(blob);
    const link = document.createElement("a");
    link.href = urlOfFile;
    link.download = name;
    link.click();
    say(`${name} downloaded`);
  } catch (error) {
    complain(error.message);
  } finally {
    button.removeAttribute("aria-disabled");
    button.textContent = text;
  }
}

// -------------------------------------------------------------------------------------------- everything

function refresh() {
  const done = pictures.filter(({ result }) => result);
  const running = pictures.filter(({ state }) => ["waiting", "sending", "working"].includes(state));
  $("work").hidden = !pictures.length;
  $("count").textContent = running.length
    ? `${pictures.length - running.length} of ${pictures.length} done`
    : `${pictures.length} picture${pictures.length === 1 ? "" : "s"}`;
  $("all").disabled = !done.length;
  $("again").hidden = !done.some(({ result }) => !same(result.settings, settings()));
  for (const { element, state, result } of pictures) {
    const redo = state === "failed" || (state === "done" && !same(result.settings, settings()));
    element.querySelector(".redo").hidden = !redo;
  }
}

function complain(message) {
  $("problem").textContent = message;
  $("problem").hidden = !message;
}

function say(message) {
  $("live").textContent = message;
}

async function downloadAll() {
  await busy($("all"), async () => {
    const files = [];
    for (const picture of pictures.filter(({ result }) => result)) files.push(await fileOf(picture));
    return ["unrain.zip", await pack(files)];
  });
}

function take(transfer) {
  const items = [...(transfer?.items ?? [])];
  const folders = new Set(
    items.map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry?.isDirectory).map(({ name }) => name),
  );
  const files = [...(transfer?.files ?? [])].filter(({ name }) => !folders.has(name));
  if (files.length) add(files);
  if (folders.size) complain("Folders cannot be taken: open it, and drop the pictures in it.");
  else if (!files.length) complain("That holds no file. Save the picture first, and drop the file.");
}

$("files").addEventListener("change", ({ target }) => {
  add([...target.files]);
  target.value = "";
});
$("model").addEventListener("change", showModel);
$("recursions").addEventListener("change", refresh);
$("options").addEventListener("submit", (event) => event.preventDefault());
$("views").addEventListener("change", show);
$("actual").addEventListener("change", ({ target }) => {
  $("stage").classList.toggle("actual", target.checked);
  paint?.();
});
$("strength").addEventListener("input", ({ target }) => {
  chosen.strength = Number(target.value);
  showStrength();
  paint?.();
});
$("download").addEventListener("click", download);
$("all").addEventListener("click", downloadAll);
$("again").addEventListener("click", () => {
  pictures.filter(({ state, result }) => state === "done" && !same(result.settings, settings())).forEach(queue);
});
document.addEventListener("paste", ({ clipboardData }) => {
  if (clipboardData?.files.length) take(clipboardData);
});
let inside = 0;
const dragging = (change) => {
  inside = Math.max(0, change ? inside + change : 0);
  document.body.classList.toggle("dragging", inside > 0);
};
document.addEventListener("dragenter", () => dragging(1));
document.addEventListener("dragleave", () => dragging(-1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  dragging(0);
  take(event.dataTransfer);
});

start();
