// The viewer: one picture, or one frame of a video, before and after, at a strength, zoomed.

// Most pixels that are computed for the screen; at actual size what a phone's canvas holds.
const MIXED_PIXELS = { fitted: 2e6, zoomed: 16e6 };
const MOST_ZOOM = 16;
const MOST_GAIN = 16;

const $ = (id) => document.getElementById(id);
const stage = $("stage");
let chosen = null;
let paint = null; // draws what is on the stage at the chosen strength
let frame = null; // what is zoomed
const view = { scale: 1, x: 0, y: 0 };

export const current = () => chosen;
export const shownView = () => document.querySelector("input[name=view]:checked").value;

export function choose(picture) {
  chosen?.element.querySelector(".open").removeAttribute("aria-current");
  chosen = picture;
  stage.dataset.key = "";
  fitted();
  if (!picture) return;
  picture.element.querySelector(".open").setAttribute("aria-current", "true");
  show();
}

/** Before and after, as far as they are there: the result's, or those of a video that is worked on. */
const pair = ({ result, frames }) => result ?? frames ?? null;

/** Shows the chosen picture on the stage, unless it is there already. */
export function show() {
  const { name, result, state, shown, video } = chosen;
  const both = pair(chosen);
  const how = shownView();
  const plays = Boolean(result?.playable) && how === "result";
  $("title").textContent = name;
  $("views").disabled = !both;
  for (const id of ["download", "copy", "facts"]) $(id).hidden = !result;
  $("copy").hidden ||= !navigator.clipboard || !globalThis.ClipboardItem;
  $("zooms").hidden = !both || plays;
  $("copy").hidden ||= plays;
  // A video that is no longer here cannot be sent again.
  $("strengths").hidden = !result || plays || (video && !chosen.file);
  stage.dataset.state = state;
  if (result) {
    const rain = how === "rain" && !video ? "the rain layer of " : "";
    $("download").setAttribute("aria-label", `Download ${rain}${name}`);
    $("copy").setAttribute("aria-label", `Copy ${video ? "the frame of " : rain}${name}`);
    showStrength();
  }
  const key = `${chosen.id} ${result?.turn ?? ""} ${both ? how : ""} ${state === "failed"}`;
  if (stage.dataset.key === key) {
    if (both) renew(both);
    return;
  }
  stage.dataset.key = key;
  $("facts").textContent = "";
  paint = frame = null;
  if (!both) {
    const now = chosen;
    shown.then((visible) => {
      if (chosen !== now || pair(now)) return;
      if (visible) {
        frame = alone(now.urls[0], `${name}, with its rain`);
        stage.replaceChildren(frame);
      } else stage.replaceChildren(blank(now));
    });
    return;
  }
  frame = document.createElement("div");
  frame.className = "frame";
  if (how === "compare") comparison(frame, chosen);
  else if (plays) frame.append(player(frame, chosen));
  else if (how === "result") frame.append(mixed(frame, chosen, `${name} without its rain`));
  else frame.append(mixed(frame, chosen, `What was removed from ${name}`, true));
  stage.replaceChildren(frame);
  // A video has controls of its own, which zooming and dragging would disturb.
  if (plays) frame = null;
  place();
  if (result) $("facts").textContent = facts(result, video);
}

/** The next frame of a video takes the place of the last. */
function renew({ beforeShown, afterShown }) {
  for (const element of stage.querySelectorAll("img[data-side]")) {
    const source = element.dataset.side === "before" ? beforeShown : afterShown;
    if (element.src !== source) {
      element.src = source;
      paint?.();
    }
  }
}

function facts(result, video) {
  const recursions = `${result.recursions} recursion${result.recursions === 1 ? "" : "s"}`;
  const took = `${result.settings.model}, ${recursions}, ${result.seconds.toFixed(1)} s`;
  const made = result.settings.strength ?? 1;
  const strength = made === 1 ? "" : `, strength ${Math.round(100 * made)} %`;
  const lines = [video ? `${result.count} frames, ${took}${strength}` : took, ...result.notes];
  if (result.problem) lines.unshift(`Not the whole video: ${result.problem}`);
  if (result.hardlyAny) lines.unshift("Hardly any rain found");
  return lines.join(". ");
}

function alone(source, text) {
  const frame = document.createElement("div");
  frame.className = "frame";
  const element = new Image();
  element.src = source;
  element.alt = text;
  frame.append(element);
  fit(element, frame);
  return frame;
}

function blank({ state, video }) {
  const element = document.createElement("p");
  const what = video ? "A frame is shown once the first are done." : "This browser shows the picture once it is done.";
  element.textContent = state === "failed" ? "Nothing to show." : what;
  return element;
}

function comparison(frame, picture) {
  const { name } = picture;
  const slider = document.createElement("img-comparison-slider");
  const before = new Image();
  before.slot = "first";
  before.dataset.side = "before";
  before.alt = `${name} before, with its rain`;
  before.src = pair(picture).beforeShown;
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

/** The result of a video, to be played; the frame that is shown where the browser cannot. */
function player(frame, { name, result }) {
  const element = document.createElement("video");
  Object.assign(element, { controls: true, loop: true, playsInline: true, src: result.playable, poster: result.afterShown });
  element.setAttribute("aria-label", `${name} without its rain`);
  element.addEventListener("loadedmetadata", () => sized(frame, element.videoWidth, element.videoHeight));
  element.addEventListener("error", () => {
    if (!result.playable) return;
    result.playable = null;
    result.notes = [...result.notes, "This browser cannot play the result: download it"];
    stage.dataset.key = "";
    if (chosen?.result === result) show();
  });
  return element;
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
  sized(frame, picture.naturalWidth, picture.naturalHeight);
}

function sized(frame, width, height) {
  frame.style.setProperty("--width", width || 1);
  frame.style.setProperty("--height", height || 1);
  frame.classList.add("fitted");
  place();
}

// ---------------------------------------------------------------------------------------------- strength

/** By how much what was taken away is multiplied: a video's frames have been made at a strength. */
const factor = ({ strength, result }) => (result ? strength / (100 * (result.settings.strength || 1)) : 1);

/** A result, or its rain layer, that follows the strength: the image itself at 100 %, else a canvas over it. */
function mixed(frame, picture, text, rain = false) {
  const element = document.createElement("div");
  element.className = "mixed";
  const after = new Image();
  after.alt = rain ? "" : text;
  after.dataset.side = "after";
  after.src = pair(picture).afterShown;
  fit(after, frame);
  const canvas = document.createElement("canvas");
  canvas.hidden = true;
  const brighter = badge("before", "");
  if (rain) {
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", text);
    after.classList.add("covered");
  } else canvas.setAttribute("aria-hidden", "true");
  element.append(after, canvas);
  if (rain) frame.append(brighter);

  const plain = () => factor(picture) === 1 && !rain;
  const most = () => MIXED_PIXELS[view.scale > 1 ? "zoomed" : "fitted"];
  let both = null;
  let due = false;
  const draw = async () => {
    while (!plain() && (both?.most !== most() || both.of !== pair(picture).afterShown)) {
      const limit = most();
      const { beforeShown, afterShown } = pair(picture);
      both = { most: limit, of: afterShown, ...(await samples(beforeShown, afterShown, limit)) };
    }
    due = false;
    canvas.hidden = plain();
    if (plain()) return;
    canvas.width = both.width;
    canvas.height = both.height;
    const layer = mix(both, factor(picture), rain);
    if (rain) {
      const gain = brightened(layer.data);
      canvas.dataset.gain = gain;
      brighter.textContent = gain > 1 ? `Rain layer, ${gain} × as bright` : "Rain layer";
    }
    canvas.getContext("2d").putImageData(layer, 0, 0);
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

/** Multiplies a layer by a whole number, so that all but its brightest half percent stays below white. */
function brightened(data) {
  const counts = new Uint32Array(256);
  for (let at = 0; at < data.length; at++) if (at % 4 !== 3) counts[data[at]]++;
  let level = 255;
  for (let above = counts[255]; level > 1 && above < 0.00375 * data.length; above += counts[level]) level--;
  const gain = Math.max(1, Math.min(MOST_GAIN, Math.floor(255 / level)));
  for (let at = 0; at < data.length; at++) if (at % 4 !== 3) data[at] *= gain;
  return gain;
}

export function setStrength(percent) {
  chosen.strength = percent;
  showStrength();
  paint?.();
}

function showStrength() {
  const text = `${chosen.strength} %`;
  $("strength").value = chosen.strength;
  $("strength").setAttribute("aria-valuetext", text);
  $("strength-shown").textContent = text;
}

/** What is shown, as a PNG: the result, or the rain layer as it is, in full size as far as a canvas holds it. */
export async function asPng(picture, rain) {
  const { beforeShown, afterShown } = pair(picture);
  const both = await samples(beforeShown, afterShown, MIXED_PIXELS.zoomed);
  const canvas = document.createElement("canvas");
  canvas.width = both.width;
  canvas.height = both.height;
  canvas.getContext("2d").putImageData(mix(both, factor(picture), rain), 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

// -------------------------------------------------------------------------------------------------- zoom

const actualScale = () => {
  const wide = Number(frame?.style.getPropertyValue("--width")) || 1;
  return frame ? wide / frame.getBoundingClientRect().width : 1;
};

function fitted() {
  Object.assign(view, { scale: 1, x: 0, y: 0 });
  place();
}

/** Applies the zoom, kept within the picture. */
function place() {
  const { width = 0, height = 0 } = frame?.getBoundingClientRect() ?? {};
  const clamp = (at, size) => (view.scale >= 1 ? Math.min(0, Math.max(size * (1 - view.scale), at)) : (size * (1 - view.scale)) / 2);
  view.x = clamp(view.x, width);
  view.y = clamp(view.y, height);
  for (const [name, value] of [["--zoom", view.scale], ["--x", `${view.x}px`], ["--y", `${view.y}px`]]) {
    stage.style.setProperty(name, value);
  }
  stage.classList.toggle("zoomed", view.scale > 1);
  const slider = stage.querySelector("img-comparison-slider");
  // Zoomed, the picture is dragged, and the slider by its handle.
  if (slider) slider.handle = view.scale > 1;
  const percent = frame ? Math.round((100 * view.scale) / actualScale()) : 100;
  $("zoom-shown").textContent = `${percent} %`;
  $("actual").checked = frame !== null && view.scale !== 1 && Math.abs(view.scale / actualScale() - 1) < 0.01;
  $("out").disabled = view.scale <= 1;
  $("in").disabled = view.scale >= MOST_ZOOM;
}

/** Zooms by a factor; what is at a point of the window stays there, or comes to another. */
function zoom(factor, from = null, to = from) {
  if (!frame) return;
  const box = frame.getBoundingClientRect();
  const [old, now] = [from, to].map((point) =>
    point ? { x: point.x - box.x, y: point.y - box.y } : { x: box.width / 2, y: box.height / 2 },
  );
  const scale = Math.min(MOST_ZOOM, Math.max(1, view.scale * factor));
  view.x = now.x - ((old.x - view.x) * scale) / view.scale;
  view.y = now.y - ((old.y - view.y) * scale) / view.scale;
  view.scale = scale;
  place();
  paint?.();
}

function pan(x, y) {
  view.x += x;
  view.y += y;
  place();
}

stage.addEventListener(
  "wheel",
  (event) => {
    // At its smallest the page scrolls on.
    if (!frame || (event.deltaY > 0 && view.scale <= 1)) return;
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    zoom(Math.exp((-event.deltaY * lines) / (event.ctrlKey ? 100 : 400)), { x: event.clientX, y: event.clientY });
  },
  { passive: false },
);

const pointers = new Map();
const middle = (points) => ({
  x: points.reduce((sum, { x }) => sum + x, 0) / points.length,
  y: points.reduce((sum, { y }) => sum + y, 0) / points.length,
});
const apart = ([one, other]) => (other ? Math.hypot(one.x - other.x, one.y - other.y) || 1 : 1);

function onHandle({ clientX, clientY }) {
  const box = stage.querySelector(".handle")?.getBoundingClientRect();
  return box && clientX >= box.left && clientX <= box.right && clientY >= box.top && clientY <= box.bottom;
}

stage.addEventListener("pointerdown", (event) => {
  if (event.button || onHandle(event)) return;
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
});
window.addEventListener("pointermove", (event) => {
  if (!pointers.has(event.pointerId) || (view.scale <= 1 && pointers.size < 2)) return;
  const before = [...pointers.values()];
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  const after = [...pointers.values()];
  zoom(apart(after) / apart(before), middle(before), middle(after));
});
for (const end of ["pointerup", "pointercancel"]) {
  window.addEventListener(end, ({ pointerId }) => pointers.delete(pointerId));
}
stage.addEventListener("dragstart", (event) => event.preventDefault());
stage.addEventListener("dblclick", (event) => {
  if (onHandle(event)) return;
  if (view.scale > 1) fitted();
  else zoom(Math.max(2, actualScale()), { x: event.clientX, y: event.clientY });
  paint?.();
});

const STEPS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
$("viewer").addEventListener(
  "keydown",
  (event) => {
    if (event.target.matches("input[type=range], input[type=radio]") || event.ctrlKey || event.metaKey) return;
    if (event.shiftKey && event.key in STEPS && view.scale > 1) pan(...STEPS[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fitted();
    else return;
    event.preventDefault();
    event.stopPropagation();
    paint?.();
  },
  true,
);
$("in").addEventListener("click", () => zoom(1.5));
$("out").addEventListener("click", () => zoom(1 / 1.5));
$("actual").addEventListener("change", ({ target }) => {
  if (target.checked) {
    const scale = actualScale();
    const { width = 0, height = 0 } = frame?.getBoundingClientRect() ?? {};
    Object.assign(view, { scale, x: (width * (1 - scale)) / 2, y: (height * (1 - scale)) / 2 });
    place();
  } else fitted();
  paint?.();
});
new ResizeObserver(() => place()).observe(stage);
