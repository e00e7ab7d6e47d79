// The page: a list of pictures and videos, what of it is at the server, and what is done with all of it.

import { filesOf, isVideo } from "./intake.js";
import { ask, cancelVideo, fetchVideo, followVideo, post, refusal, ticket, wait } from "./server.js";
import { drop, keep, kept } from "./store.js";
import { asPng, choose, current, setStrength, show, shownView } from "./viewer.js";
import { pack, unpack } from "./zip.js";

// Pictures and videos have lanes of their own, here as at the server.
const AT_ONCE = { picture: 2, video: 1 };
const MOST_RECURSIONS = 8;
const ASK_EVERY = 400; // milliseconds
const PURPOSES = { best: "Best", fast: "Fast" };

const $ = (id) => document.getElementById(id);
const pictures = [];
let limits = { bytes: 25e6, pixels: 40e6, recursions: MOST_RECURSIONS, video_bytes: 0 };
let models = [];
const atWork = { picture: 0, video: 0 };
let urlOfFile = null;
let turns = 0;
let pace = null; // seconds that a picture takes, as the last ones did

// ------------------------------------------------------------------------------------------------ start

async function start() {
  const here = ["localhost", "[::1]"].includes(location.hostname) || location.hostname.startsWith("127.");
  $("promise").textContent = here
    ? "Takes the rain out of pictures and videos. They stay on this computer."
    : `Takes the rain out of pictures and videos. They go to ${location.hostname} and are not kept there.`;
  try {
    const [found, allowed, health] = await Promise.all(["api/models", "api/limits", "healthz"].map(ask));
    models = found;
    limits = allowed;
    $("version").textContent = `unrain ${health.version}`;
  } catch {
    complain("The server does not answer. Is it still running?");
    return;
  }
  const known = models.filter(({ purpose }) => purpose in PURPOSES);
  const others = models.filter(({ purpose }) => !(purpose in PURPOSES));
  const options = others.map(({ name }) => new Option(name, name));
  if (known.length && options.length) {
    const group = document.createElement("optgroup");
    group.label = "Others";
    group.append(...options.splice(0));
    options.push(group);
  }
  $("model").replaceChildren(...known.map(({ name, purpose }) => new Option(PURPOSES[purpose], name)), ...options);
  $("model").value = models[0].name;
  const videos = limits.video_bytes ? `; videos up to ${limits.video_bytes / 1e6} MB` : "";
  $("limits").textContent =
    `JPEG, PNG, WebP, TIFF, BMP, AVIF, HEIC; up to ${limits.bytes / 1e6} MB and ${limits.pixels / 1e6} megapixels each${videos}`;
  showModel();
  for (const record of await kept()) restore(record);
  if (!current() && pictures.length) choose(pictures[0]);
  refresh();
  document.body.dataset.ready = "true";
}

function showModel() {
  const model = models.find(({ name }) => name === $("model").value);
  const name = model.purpose in PURPOSES ? [model.name] : [];
  $("model-hint").textContent = [...name, ...(model.summary ? [model.summary] : [])].join(": ");
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
/** What an entry would be made with now: a video has its strength in it, a picture takes it afterwards. */
const wanted = ({ video, strength }) => ({ ...settings(), ...(video && { strength: strength / 100 }) });
const same = (one, other) => ["model", "recursions", "strength"].every((key) => one[key] === other[key]);

// --------------------------------------------------------------------------------------------- pictures

function add(files) {
  complain("");
  for (const file of files) {
    const picture = entry({ id: ticket(), at: Date.now(), name: file.name, file, video: isVideo(file) });
    picture.shown = look(picture);
    queue(picture);
  }
  if (!current() && pictures.length) choose(pictures[0]);
  refresh();
}

/** Puts a picture or video into the list. */
function entry(about) {
  const element = $("entry").content.firstElementChild.cloneNode(true);
  const urls = about.file && !about.video ? [URL.createObjectURL(about.file)] : [];
  const picture = { element, state: "waiting", strength: 100, shown: Promise.resolve(false), result: null, urls, ...about };
  pictures.push(picture);
  const { name } = picture;
  element.classList.toggle("film", picture.video);
  element.querySelector(".name").textContent = name;
  element.querySelector(".open").addEventListener("click", () => {
    choose(picture);
    refresh();
  });
  const redo = element.querySelector(".redo");
  redo.setAttribute("aria-label", `Work on ${name} again`);
  redo.addEventListener("click", () => queue(picture));
  const remove = element.querySelector(".remove");
  remove.setAttribute("aria-label", `Remove ${name}`);
  remove.addEventListener("click", () => {
    forget(picture);
    say(`${name} removed`);
  });
  $("pictures").append(element);
  return picture;
}

/** Shows the thumbnail; false if the browser cannot show this kind of file. */
async function look({ element, urls, video }) {
  if (video) return false;
  const thumb = element.querySelector(".thumb");
  thumb.src = urls[0];
  try {
    await thumb.decode();
    return true;
  } catch {
    thumb.removeAttribute("src");
    return false;
  }
}

function queue(picture) {
  picture.settings = wanted(picture);
  const most = picture.video ? limits.video_bytes : limits.bytes;
  if (picture.video && !most) fail(picture, { message: "this server takes no videos" });
  else if (picture.file.size > most) fail(picture, { message: `larger than ${most / 1e6} MB, the limit of this server` });
  else {
    set(picture, "waiting", "Waiting");
    next();
  }
}

function forget(picture) {
  const at = pictures.indexOf(picture);
  pictures.splice(at, 1);
  picture.state = "removed";
  picture.request?.abort();
  if (picture.job) cancelVideo(picture.job);
  drop(picture.id);
  picture.element.remove();
  discard(picture, picture.urls);
  const neighbour = pictures[Math.min(at, pictures.length - 1)];
  if (current() === picture) choose(neighbour ?? null);
  (neighbour?.element.querySelector(".open") ?? $("files")).focus();
  refresh();
}

function set(picture, state, status, share) {
  picture.state = state;
  picture.share = share;
  picture.element.dataset.state = state;
  picture.element.querySelector(".status").textContent = status;
  const bar = picture.element.querySelector(".progress");
  bar.setAttribute("aria-label", `${picture.name}: ${status}`);
  if (share === undefined) bar.removeAttribute("value");
  else bar.value = share;
  if (picture === current()) show();
  refresh();
}

/** Says what is wrong; `again` is whether the same may go well another time. */
function fail(picture, { message, again = false }) {
  picture.again = again;
  set(picture, "failed", message);
  say(`${picture.name}: ${message}`);
}

// ---------------------------------------------------------------------------------------------- working

function next() {
  for (const kind of ["picture", "video"]) {
    while (atWork[kind] < AT_ONCE[kind]) {
      const picture = pictures.find(({ state, video }) => state === "waiting" && video === (kind === "video"));
      if (!picture) break;
      atWork[kind]++;
      picture.state = "sending";
      work(picture).finally(() => {
        atWork[kind]--;
        next();
      });
    }
  }
}

const gone = ({ state }) => state === "removed";

async function work(picture) {
  picture.begun = performance.now();
  try {
    if (picture.video) await workOnVideo(picture);
    else await workOnPicture(picture);
  } catch (error) {
    if (!gone(picture)) fail(picture, error);
  }
}

async function workOnPicture(picture) {
  const shown = await picture.shown;
  const fields = { ...picture.settings, ticket: ticket(), difference: true, preview: !shown, picture: picture.file };
  let timer = 0;
  const answer = await sent(picture, "api/derain", fields, () => {
    set(picture, "working", "Removing the rain");
    clearInterval(timer);
    timer = setInterval(() => follow(picture, fields.ticket), ASK_EVERY);
  }).finally(() => clearInterval(timer));
  if (answer) await finish(picture, answer, shown);
}

/** Posts a form until there is room for it, and returns the answer; null if the picture was removed. */
async function sent(picture, path, fields, onSent) {
  for (;;) {
    if (gone(picture)) return null;
    set(picture, "sending", "Sending");
    const answer = await post(path, fields, {
      request: (request) => (picture.request = request),
      sending: (share) => set(picture, "sending", "Sending", share),
      sent: onSent,
    });
    if (gone(picture)) return null;
    if (answer.ok) return answer;
    if (answer.status !== 429) throw await refusal(answer, picture.name);
    for (let left = Number(answer.headers.get("Retry-After")) || 5; left > 0 && !gone(picture); left--) {
      set(picture, "sending", `The server is busy, trying again in ${left} s`);
      await wait(1);
    }
  }
}

async function follow(picture, word) {
  const { request } = picture;
  const state = await ask(`api/progress/${word}`).catch(() => null);
  if (!state || request.readyState > XMLHttpRequest.OPENED || picture.request !== request) return;
  if (picture.state !== "working") return;
  if (state.ahead) set(picture, "working", `Waiting, ${state.ahead} before it`);
  else if (state.done) set(picture, "working", `Removing the rain, ${percent(state)}`, state.done / state.total);
  else set(picture, "working", "Removing the rain");
}

const percent = ({ done, total }) => `${Math.round((100 * done) / total)} %`;

async function finish(picture, answer, shown) {
  const files = await unpack(await answer.blob());
  const name = [...files.keys()].find((each) => /_derained\.\w+$/.test(each));
  discard(picture, picture.urls.slice(1));
  picture.result = {
    name,
    blob: files.get(name),
    difference: files.get("difference.png"),
    before: shown ? null : files.get("preview_before.jpg"),
    after: shown ? null : files.get("preview_after.jpg"),
    type: shown ? picture.file.type : "image/jpeg",
    recursions: Number(answer.headers.get("Unrain-Recursions")),
    seconds: Number(answer.headers.get("Unrain-Seconds")),
    hardlyAny: answer.headers.get("Unrain-Hardly-Any-Rain") === "true",
    notes: JSON.parse(answer.headers.get("Unrain-Notes") ?? "[]"),
    settings: picture.settings,
  };
  pace = pace === null ? picture.result.seconds : 0.7 * pace + 0.3 * picture.result.seconds;
  done(picture);
}

/** Shows a result, and keeps it. */
async function done(picture) {
  present(picture);
  const hardlyAny = picture.result.hardlyAny ? ", hardly any rain found" : "";
  const count = pictures.filter(({ state }) => state === "done").length;
  say(`${picture.name}: done${hardlyAny}, ${count} of ${pictures.length}`);
  await remember(picture);
}

function present(picture) {
  const { result, urls } = picture;
  const url = (blob, type) => {
    urls.push(URL.createObjectURL(blob.slice(0, undefined, type)));
    return urls.at(-1);
  };
  result.turn = ++turns;
  result.beforeShown = result.before ? url(result.before, "image/jpeg") : urls[0];
  result.afterShown = url(result.after ?? result.blob, result.type);
  if (picture.video) result.playable = url(result.blob, result.blob.type);
  picture.element.querySelector(".thumb").src = result.beforeShown;
  const hardlyAny = result.hardlyAny ? ", hardly any rain found" : "";
  const whole = result.problem ? `Not the whole video: ${result.problem}` : `Done in ${duration(result.seconds)}`;
  set(picture, "done", `${whole}${hardlyAny}`);
}

function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  return seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// ------------------------------------------------------------------------------------------------ videos

async function workOnVideo(picture) {
  if (!picture.job) {
    const answer = await sent(picture, "api/videos", { ...picture.settings, video: picture.file }, () => {
      set(picture, "working", "Waiting");
    });
    if (!answer) return;
    picture.job = (await answer.json()).id;
    await remember(picture);
  }
  const { job } = picture;
  let shown = 0;
  let state;
  try {
    state = await followVideo(job, async (state) => {
      if (gone(picture)) return false;
      if (state.state === "waiting") set(picture, "working", state.ahead ? `Waiting, ${state.ahead} before it` : "Waiting");
      else if (state.state === "working") tellFrames(picture, state);
      if (state.shown > shown) {
        shown = state.shown;
        await showFrame(picture, job);
      }
      return true;
    });
  } catch (error) {
    picture.job = null;
    if (!error.again) cancelVideo(job);
    drop(picture.id);
    throw error;
  }
  if (!state) return;
  set(picture, "working", "Fetching the result");
  const blob = await fetchVideo(job);
  if (gone(picture)) return;
  picture.job = null;
  discard(picture, picture.urls);
  picture.result = {
    name: state.result,
    blob,
    before: picture.frames?.before,
    after: picture.frames?.after,
    type: "image/jpeg",
    recursions: state.recursions,
    seconds: state.seconds,
    count: state.frames,
    problem: state.problem,
    hardlyAny: state.hardly_any_rain,
    notes: state.notes,
    settings: picture.settings,
  };
  picture.frames = picture.passed = null;
  done(picture);
}

function tellFrames(picture, { done, total, left }) {
  picture.left = left;
  if (!done) set(picture, "working", "Removing the rain");
  else if (done >= total) set(picture, "working", "Finishing the file", 1);
  else {
    const time = left === null ? "" : `, ${about(left)} left`;
    set(picture, "working", `Frame ${done} of ${total}${time}`, done / total);
  }
}

/** Shows the last frame of a video that is worked on. */
async function showFrame(picture, job) {
  const answer = await fetch(`api/videos/${job}/frame`).catch(() => null);
  if (!answer?.ok || gone(picture)) return;
  const files = await unpack(await answer.blob());
  const [before, after] = ["before.jpg", "after.jpg"].map((name) => files.get(name).slice(0, undefined, "image/jpeg"));
  // The frame before may still be on its way to the screen.
  discard(picture, picture.passed ?? []);
  if (picture.frames) picture.passed = [picture.frames.beforeShown, picture.frames.afterShown];
  const [beforeShown, afterShown] = [before, after].map((blob) => URL.createObjectURL(blob));
  picture.urls.push(beforeShown, afterShown);
  picture.frames = { before, after, beforeShown, afterShown };
  picture.element.querySelector(".thumb").src = beforeShown;
  if (picture === current()) show();
}

/** Lets go of some of the addresses under which the browser shows files. */
function discard(picture, urls) {
  picture.urls = picture.urls.filter((url) => !urls.includes(url));
  urls.forEach((url) => URL.revokeObjectURL(url));
}

// ---------------------------------------------------------------------------------------------- keeping

/** Keeps what a reload would lose: results with what they need, and the ids of videos at the server. */
async function remember(picture) {
  const { id, at, name, video, file, strength, job, settings, result } = picture;
  const { beforeShown, afterShown, playable, turn, ...whole } = result ?? {};
  const record = { id, at, name, video, strength, job, settings, file: video ? null : file, result: result && whole };
  const fine = await keep(record);
  if (gone(picture)) drop(id);
  else if (!fine) complain("This browser has no room to keep the results: download them before you leave.");
}

function restore({ result, ...about }) {
  const picture = entry({ ...about, result, state: "restored" });
  if (result) {
    if (!picture.video && !result.before) picture.shown = Promise.resolve(true);
    present(picture);
  } else {
    // A video that the server still works on.
    atWork.video++;
    work(picture).finally(() => {
      atWork.video--;
      next();
    });
  }
}

// ----------------------------------------------------------------------------------------------- results

/** The file of a result, or of its rain layer, at the strength that is chosen: [name, Blob]. */
async function fileOf(picture, rain = false) {
  const { result, strength, video } = picture;
  if (video || (strength === 100 && !rain)) return [result.name, result.blob];
  const form = new FormData();
  form.append("strength", strength / 100);
  form.append("rain_layer", rain);
  form.append("picture", picture.file, picture.name);
  form.append("difference", result.difference, "difference.png");
  for (;;) {
    const answer = await fetch("api/strength", { method: "POST", body: form });
    if (answer.ok) {
      const blob = await answer.blob();
      return rain ? [...(await unpack(blob))].find(([name]) => name.endsWith("_rain.png")) : [result.name, blob];
    }
    if (answer.status !== 429) throw new Error((await answer.json()).detail);
    await wait(Number(answer.headers.get("Retry-After")) || 5);
  }
}

async function download() {
  await busy($("download"), () => fileOf(current(), shownView() === "rain"));
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

async function copy() {
  const { name } = current();
  try {
    const png = asPng(current(), shownView() === "rain");
    await navigator.clipboard.write([new ClipboardItem({ "image/png": png })]);
    $("copy").textContent = "Copied";
    setTimeout(() => ($("copy").textContent = "Copy"), 2000);
    say(`${name} copied`);
  } catch {
    complain("This browser does not let the page copy pictures: download it instead.");
  }
}

// -------------------------------------------------------------------------------------------- everything

function refresh() {
  const ready = pictures.filter(({ result }) => result);
  const running = pictures.filter(({ state }) => ["waiting", "sending", "working"].includes(state));
  const failed = pictures.filter(({ state }) => state === "failed").length;
  $("work").hidden = !pictures.length;
  $("try").hidden = pictures.length > 0;
  document.body.classList.toggle("filled", pictures.length > 0);
  $("files-title").textContent = pictures.length ? "Add pictures or videos" : "Choose pictures or videos";
  $("count").textContent = counted(running, failed);
  $("all").disabled = !ready.length;
  $("again").hidden = !ready.some(outdated);
  const shown = current();
  $("apply").hidden = !shown?.video || shown.state !== "done" || shown.strength === Math.round(100 * (shown.result.settings.strength ?? 1));
  for (const picture of pictures) {
    const redo = picture.state === "failed" ? picture.again || !same(picture.settings, wanted(picture)) : picture.state === "done" && outdated(picture);
    picture.element.querySelector(".redo").hidden = !redo || !picture.file;
  }
}

const outdated = ({ result, file, video, strength }) => file && result && !same(result.settings, wanted({ video, strength }));

function counted(running, failed) {
  const parts = [];
  if (running.length) parts.push(`${pictures.length - running.length - failed} of ${pictures.length} done`);
  else if (failed) parts.push(`${pictures.length - failed} of ${pictures.length} done`);
  else {
    const videos = pictures.filter(({ video }) => video).length;
    const count = (number, word) => (number ? [`${number} ${word}${number === 1 ? "" : "s"}`] : []);
    parts.push([...count(pictures.length - videos, "picture"), ...count(videos, "video")].join(" and "));
  }
  if (failed) parts.push(`${failed} failed`);
  const left = secondsLeft(running);
  if (left > 3) parts.push(`${about(left)} left`);
  return parts.join(", ");
}

/** Estimates how long all that is waiting takes; 0 if that cannot be told yet. */
function secondsLeft(running) {
  const [videos, others] = [true, false].map((which) => running.filter(({ video }) => video === which));
  let seconds = 0;
  for (const { share = 0, begun, state } of others) {
    const own = state === "working" && share > 0.05 ? ((performance.now() - begun) / 1000) * (1 / share - 1) : null;
    if (own === null && pace === null) return 0;
    seconds += own ?? pace;
  }
  if (videos.some(({ left }) => !left)) return 0;
  return Math.max(seconds, ...videos.map(({ left }) => left), 0);
}

function about(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
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

async function take(transfer) {
  const { files, left, folders } = await filesOf(transfer);
  if (files.length) add(files);
  if (left) complain(`${left} file${left === 1 ? " in it is" : "s in it are"} neither picture nor video and left out.`);
  else if (folders && !files.length) complain("There is no picture and no video in that folder.");
  else if (!files.length) complain("That holds no file. Save the picture first, and drop the file.");
}

async function sample() {
  const answer = await fetch("sample.jpg");
  add([new File([await answer.blob()], "sample.jpg", { type: "image/jpeg" })]);
}

$("files").addEventListener("change", ({ target }) => {
  add([...target.files]);
  target.value = "";
});
$("sample").addEventListener("click", sample);
$("model").addEventListener("change", showModel);
$("recursions").addEventListener("change", refresh);
$("options").addEventListener("submit", (event) => event.preventDefault());
$("views").addEventListener("change", show);
$("strength").addEventListener("input", ({ target }) => {
  setStrength(Number(target.value));
  refresh();
});
$("apply").addEventListener("click", () => queue(current()));
$("strength").addEventListener("change", () => remember(current()));
$("download").addEventListener("click", download);
$("copy").addEventListener("click", copy);
$("all").addEventListener("click", downloadAll);
$("clear").addEventListener("click", () => {
  for (const picture of [...pictures]) forget(picture);
  say("All cleared");
});
$("again").addEventListener("click", () => {
  pictures.filter((picture) => picture.state === "done" && outdated(picture)).forEach(queue);
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
