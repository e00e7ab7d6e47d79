// What is asked of the server: pictures in one request each, videos by an id.

const LOST = "the server cannot be reached, is it still running?";

export const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

export async function ask(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw Object.assign(new Error(`${path}: ${answer.status}`), { status: answer.status });
  return answer.json();
}

/**
 * Posts a form and tells of its way; only XMLHttpRequest reports the progress of an upload.
 *
 * `on.request` gets the request, `on.sending` the share that is sent, `on.sent` nothing.
 */
export function post(path, fields, on) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    on.request(request);
    request.open("POST", path);
    request.responseType = "blob";
    request.upload.addEventListener("progress", ({ loaded, total }) => on.sending(loaded / total));
    request.upload.addEventListener("load", () => on.sent());
    request.addEventListener("load", () => {
      const headers = new Headers();
      for (const name of ["Retry-After", "Unrain-Recursions", "Unrain-Seconds", "Unrain-Notes", "Unrain-Hardly-Any-Rain"]) {
        const value = request.getResponseHeader(name);
        if (value !== null) headers.set(name, value);
      }
      resolve(new Response(request.response, { status: request.status, headers }));
    });
    const lost = () => reject(Object.assign(new Error(LOST), { again: true }));
    request.addEventListener("error", lost);
    request.addEventListener("abort", lost);
    request.send(form);
  });
}

/** What a refusal says, without the name that is shown above it, and whether another try can help. */
export async function refusal(answer, name) {
  const { detail } = await answer.json().catch(() => ({ detail: "the server failed, its log says why" }));
  const message = detail.startsWith(`${name}: `) ? detail.slice(name.length + 2) : detail;
  return Object.assign(new Error(message), { again: [408, 429, 500, 502, 503, 504].includes(answer.status) });
}

export const ticket = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16)).join("-");

/** Asks how far a video is until it is done or has failed; `tell` gets each answer, and ends it by returning false. */
export async function followVideo(id, tell) {
  for (let lost = 0; ; await wait(0.5)) {
    let state;
    try {
      state = await ask(`api/videos/${id}`);
    } catch (error) {
      if (error.status === 404) throw Object.assign(new Error("the server no longer has it"), { again: true });
      if (++lost > 20) throw Object.assign(new Error(LOST), { again: true });
      continue;
    }
    lost = 0;
    if ((await tell(state)) === false) return null;
    if (state.state === "failed") throw new Error(state.detail.replace(`${state.name}: `, ""));
    if (state.state === "done") return state;
  }
}

/** Fetches the result of a video, after which the server has nothing of it left. */
export async function fetchVideo(id) {
  for (let tries = 1; ; tries++) {
    try {
      const answer = await fetch(`api/videos/${id}/result`);
      if (answer.ok) return await answer.blob();
      throw await refusal(answer, "");
    } catch (error) {
      if (tries === 3) throw error;
      await wait(1);
    }
  }
}

export const cancelVideo = (id) => fetch(`api/videos/${id}`, { method: "DELETE", keepalive: true }).catch(() => {});
