// The service: relative addresses, so that a proxy may put it under any prefix.

import { pageErrors } from "./strings.js";

const KEY = "r2gen-key";

export class ServiceError extends Error {
  constructor({ code, message, fix }) {
    super(message);
    this.code = code;
    this.fix = fix;
  }
}

// The key lives in this tab only. Where the browser refuses even that, it lives until the page is loaded again.
let memory = null;
export const key = {
  get() {
    try { return sessionStorage.getItem(KEY) ?? memory; } catch { return memory; }
  },
  set(value) {
    memory = value;
    try { sessionStorage.setItem(KEY, value); } catch { /* memory has it */ }
  },
  forget() {
    memory = null;
    try { sessionStorage.removeItem(KEY); } catch { /* nothing was stored */ }
  },
};

async function send(path, accept, options = {}) {
  const headers = { Accept: accept };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, credentials: "same-origin", redirect: "error", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(pageErrors.connection);
  }
  if (answer.ok) return answer;
  let fields = null;
  try { fields = (await answer.json()).error; } catch { /* said below */ }
  const readable = fields && typeof fields.code === "string" && typeof fields.message === "string";
  const error = new ServiceError(readable ? fields : pageErrors.answer(answer.status));
  error.status = answer.status;
  throw error;
}

function body(study, extra = {}) {
  const form = new FormData();
  for (const file of study.files) form.append("images", file, file.name);
  for (const [name, value] of Object.entries({ preset: study.preset, seed: study.seed, ...extra })) {
    if (value) form.append(name, value);
  }
  return form;
}

export async function ready() {
  try {
    await send("ready", "application/json");
    return "ready";
  } catch (error) {
    return error.status ? "notReady" : "unreachable";
  }
}

export async function model() {
  const answer = await send("v1/models", "application/json");
  const { data, notice } = await answer.json();
  return { ...data?.[0], notice };
}

// Yields {type: "text", text} and at the end {type: "report", raw}, the report's JSON as it came.
export async function* writeReport(study, signal) {
  const answer = await send("v1/reports", "text/event-stream", { method: "POST", body: body(study), signal });
  if (!(answer.headers.get("Content-Type") ?? "").startsWith("text/event-stream")) {
    throw new ServiceError(pageErrors.answer(answer.status));
  }
  for await (const { event, data } of events(answer.body)) {
    let value;
    try {
      value = JSON.parse(data);
    } catch {
      throw new ServiceError(pageErrors.answer(answer.status));
    }
    if (event === "error") throw new ServiceError(value.error ?? value);
    if (event === "text") yield { type: "text", text: value.text };
    if (event === "report") {
      yield { type: "report", raw: data };
      return;
    }
  }
  throw new ServiceError(pageErrors.ended);
}

export async function writeDocument(study, accept, format) {
  return blobOf(await send("v1/reports", accept, { method: "POST", body: body(study, { format }) }), accept);
}

// The file as the service reads it for the model.
export async function writePicture(file, signal) {
  const accept = "image/png";
  return blobOf(await send("v1/pictures", accept, { method: "POST", body: body({ files: [file] }), signal }), accept);
}

async function blobOf(answer, kind) {
  if (!(answer.headers.get("Content-Type") ?? "").startsWith(kind)) {
    throw new ServiceError(pageErrors.answer(answer.status));
  }
  try {
    return await answer.blob();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError(pageErrors.connection);
  }
}

// Server-sent events by the HTML standard, 9.2.6. EventSource can send neither a body nor a header.
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", event = "message", data = [];
  try {
    for (;;) {
      let part;
      try {
        part = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        throw new ServiceError(pageErrors.connection);
      }
      if (part.done) return; // an event without its empty line is not whole
      rest += part.value;
      // A CR at the end of a part may be the first half of CRLF.
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          event = "message";
          data = [];
          continue;
        }
        const [, field, value = ""] = line.match(/^([^:]*)(?:: ?(.*))?$/s);
        if (field === "event") event = value;
        if (field === "data") data.push(value);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
