// The page: what was chosen, the report being written, and the reports of this tab. Nothing is stored.

import { key, model, ready, ServiceError, writeDocument, writeReport } from "./api.js";
import { Previews, refused } from "./previews.js";
import { download, jsonOf, showFacts, showStages, withNotice } from "./report.js";
import { facts, pageErrors, say, text } from "./strings.js";
import { Viewer } from "./viewer.js";
import { showLegend, showWords, wordsOf } from "./words.js";

const AGAIN_MS = 3000;

const $ = (id) => document.getElementById(id);

const state = {
  files: [], // of the study on the left; `dicom` says which of them are DICOM
  view: 0,
  running: null, // AbortController of the report being written
  entry: null, // the report shown: {study, raw, report, edited, time}
  entries: [],
  service: {},
};

for (const element of document.querySelectorAll("[data-text]")) element.textContent = text[element.dataset.text];
for (const element of document.querySelectorAll("[data-label]")) element.ariaLabel = text[element.dataset.label];

const previews = new Previews();
const viewer = new Viewer({ canvas: $("picture"), level: $("level"), width: $("width"), reset: $("window-reset") });

const status = (words) => { $("status").textContent = words; };

function showError(error) {
  $("error").hidden = !error;
  $("error").replaceChildren(...(error ? withCode(say.error, error) : []));
}

function withCode(words, error) {
  if (!(error instanceof ServiceError)) throw error;
  const code = document.createElement("code");
  code.textContent = error.code;
  return [`${words(error)} (`, code, ")"];
}

// ---- images

async function isDicom(file) {
  const mark = await file.slice(128, 132).text().catch(() => "");
  return mark === "DICM" || /\.dcm$/i.test(file.name);
}

async function addFiles(list) {
  const files = [...list];
  for (const file of files) file.dicom = await isDicom(file);
  if (!files.length) return;
  state.view = state.files.length;
  state.files = [...state.files, ...files];
  status(say.files(state.files.length));
  await showFiles();
}

async function showFiles() {
  const { files } = state;
  state.view = Math.max(0, Math.min(state.view, files.length - 1));
  $("views").replaceChildren(...files.map((file, index) => {
    const item = document.createElement("li");
    const show = button(say.view(index + 1, file.name), () => chooseView(index));
    show.ariaPressed = String(index === state.view);
    const remove = button("×", () => removeView(index));
    remove.ariaLabel = say.remove(index + 1);
    item.append(show, remove);
    return item;
  }));
  showButtons();
  showWhose();
  const file = files[state.view];
  previews.cancel(file);
  $("viewer").hidden = !file;
  if (!file) return;
  // Until it is drawn, the canvas shows the view before.
  if (file !== viewer.shown) for (const id of ["picture", "window", "window-hint", "no-preview"]) $(id).hidden = true;
  let problem = null;
  try {
    await showPicture(file);
  } catch (error) {
    if (error.name === "AbortError") return;
    problem = error;
  }
  if (file !== state.files[state.view]) return;
  for (const id of ["picture", "window", "window-hint"]) $(id).hidden = problem !== null;
  $("picture").ariaLabel = say.picture(state.view + 1, file.name);
  $("no-preview").hidden = problem === null;
  if (problem) await showNoPicture(problem);
}

// As the browser decodes it, else as the service does.
async function showPicture(file) {
  if (file === viewer.shown || (!file.dicom && (await viewer.show(file)))) return;
  if (file !== state.files[state.view]) return;
  $("no-preview").hidden = false;
  $("no-preview").className = "";
  $("no-preview").textContent = say.reading(state.view + 1);
  const picture = await previews.of(file);
  if (file === state.files[state.view] && !(await viewer.show(file, picture))) {
    throw new ServiceError(pageErrors.answer(200));
  }
}

async function showNoPicture(problem) {
  const number = state.view + 1;
  const words = withCode((error) => say.noPreview(number, error), problem);
  $("no-preview").replaceChildren(...words, refused(problem) ? "" : ` ${say.tryAgain}`);
  $("no-preview").className = "error";
  if (problem.status === 401) await needKey(problem);
}

function chooseView(index) {
  state.view = index;
  showFiles();
  $("views").querySelectorAll("button")[2 * index].focus();
}

function removeView(index) {
  state.files = state.files.filter((_, place) => place !== index);
  showFiles();
  ($("views").querySelectorAll("button")[2 * state.view] ?? $("choose")).focus();
}

function button(label, action) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = label;
  element.addEventListener("click", action);
  return element;
}

// ---- a report

function showButtons() {
  const running = state.running !== null;
  $("start").disabled = running || state.files.length === 0;
  $("cancel").hidden = !running;
}

async function start() {
  if (state.running || !state.files.length) return;
  const running = new AbortController();
  const study = { files: state.files, preset: $("preset").value };
  state.running = running;
  state.entry = null;
  clearReport();
  showButtons();
  $("cancel").focus();
  status(say.sending);
  $("text").ariaBusy = "true";
  try {
    await takeReport(study, running.signal);
  } catch (error) {
    const begun = $("text").value !== "";
    if (error.name === "AbortError") status(say.cancelled);
    else status(begun ? say.incomplete : say.failed);
    if (error.status === 401) await needKey(error);
    else if (error.name !== "AbortError") showError(error);
  } finally {
    state.running = null;
    $("text").ariaBusy = "false";
    const focused = document.activeElement === $("cancel") || document.activeElement === document.body;
    showButtons();
    showHistory();
    showService();
    if (focused) (state.entry ? $("report-title") : $("start")).focus();
  }
}

async function takeReport(study, signal) {
  for await (const event of writeReport(study, signal)) {
    if (event.type === "text") {
      if (!$("text").value) status(say.writing);
      $("text").value += event.text;
      $("draft").hidden = false;
      continue;
    }
    const report = JSON.parse(event.raw);
    const entry = { study, raw: event.raw, report, edited: report.text, time: new Date().toLocaleTimeString("en-GB") };
    // A seed may have more digits than a JavaScript number: the documents must be of the same draws.
    if (report.decoding?.do_sample) study.seed = event.raw.match(/"seed":\s*(\d+)/)?.[1];
    state.entries.unshift(entry);
    showEntry(entry);
    const words = report.text.split(/\s+/).filter(Boolean).length;
    const done = say.done(words, report.timings_ms.total);
    status(report.finish_reason === "length" ? `${done} ${say.cutOff}` : done);
  }
}

function clearReport() {
  showError(null);
  $("text").value = "";
  $("text").readOnly = true;
  for (const id of ["draft", "done", "of", "warnings", "other-pictures", "undo"]) $(id).hidden = true;
  showHistory();
}

function showEntry(entry) {
  const { report, study } = entry;
  state.entry = entry;
  showError(null);
  $("text").value = entry.edited;
  $("text").readOnly = false;
  $("notice-text").textContent = report.notice;
  $("of").textContent = say.of(study.files.map(({ name }) => name).join(", "), entry.time);
  $("of").hidden = $("draft").hidden = $("done").hidden = false;
  $("undo").hidden = entry.edited === report.text;
  $("warnings").replaceChildren(...report.warnings.map((warning) => {
    const item = document.createElement("li");
    item.textContent = warning;
    return item;
  }));
  $("warnings").hidden = report.warnings.length === 0;
  $("sr").disabled = !study.files.every(({ dicom }) => dicom);
  showColour();
  showStages($("bar"), $("stages"), report.timings_ms);
  showFacts($("facts"), factsOf(report));
  showWhose();
  showHistory();
}

function showColour() {
  $("coloured").hidden = !$("colour").checked;
  if (!state.entry) return;
  const words = wordsOf(state.entry.report);
  if (words) showWords(words, $("words"), $("tip"));
  else $("words").textContent = text.wordsMissing;
  $("legend").hidden = $("tip").hidden = !words;
}

// Whether the images on the left are those of the report on the right.
function showWhose() {
  const { entry, files } = state;
  const same = !entry || (entry.study.files.length === files.length && entry.study.files.every((file, at) => file === files[at]));
  $("other-pictures").hidden = same;
}

function showHistory() {
  $("history").hidden = state.entries.length === 0;
  $("entries").replaceChildren(...state.entries.map((entry) => {
    const names = entry.study.files.map(({ name }) => name).join(", ");
    const begin = entry.edited.split(/\s+/).slice(0, 8).join(" ");
    const item = document.createElement("li");
    const again = button(say.again(entry.time, names, begin), () => openEntry(entry));
    if (entry === state.entry) again.ariaCurrent = "true";
    again.disabled = state.running !== null && entry !== state.entry;
    item.append(again);
    return item;
  }));
}

function openEntry(entry) {
  if (state.running) return;
  state.files = entry.study.files;
  showEntry(entry);
  showFiles();
  status(say.of(entry.study.files.map(({ name }) => name).join(", "), entry.time));
  $("report-title").focus();
}

function factsOf(report) {
  const { service } = state;
  const taken = (report.backends ?? []).filter((candidate) => candidate.taken).map(({ name }) => name);
  return {
    [facts.model]: report.model_id ?? service.id,
    [facts.bundle]: report.bundle_id ?? service.bundle_id,
    [facts.precision]: report.precision ?? service.precision,
    [facts.backend]: [...new Set(taken)].join(", ") || report.execution_provider || service.execution_provider,
    [facts.preset]: report.preset,
    [facts.version]: report.r2gen_version ?? service.r2gen_version,
  };
}

// ---- what is done with a report

async function copy() {
  const words = withNotice($("text").value, state.entry.report);
  try {
    await navigator.clipboard.writeText(words);
    status(say.copied);
  } catch {
    status(say.notCopied);
    $("text").select();
  }
}

async function saveDocument(accept, format, kind, name) {
  const { entry } = state;
  showError(null);
  status(say.making(kind));
  try {
    download(await writeDocument(entry.study, accept, format), name);
    status(say.made(kind));
  } catch (error) {
    status(say.failed);
    if (error.status === 401) await needKey(error);
    else showError(error);
  }
}

// ---- the service

async function showService() {
  const answer = await ready();
  if ($("service").textContent !== say[answer]) $("service").textContent = say[answer];
  clearTimeout(state.again);
  if (answer !== "ready") state.again = setTimeout(showService, AGAIN_MS);
  else if (!state.service.id && !$("key-dialog").open) loadModel();
  $("forget").hidden = key.get() === null;
}

async function loadModel() {
  try {
    state.service = await model();
  } catch (error) {
    if (error.status === 401) return needKey(error);
    return; // the line about the service says that it is not ready
  }
  if (state.service.notice) $("notice-text").textContent = state.service.notice;
  const presets = Array.isArray(state.service.presets) ? state.service.presets : Object.keys(state.service.presets ?? {});
  $("preset").replaceChildren(new Option(text.presetDefault, ""), ...presets.map((name) => new Option(name, name)));
  if (!state.entry) showFacts($("facts"), factsOf({}));
}

async function needKey(error) {
  // Keys that the service refused are of no use for the next question.
  const refused = key.get() !== null;
  key.forget();
  $("forget").hidden = true;
  if (refused) showError(error);
  else showError(new ServiceError(pageErrors.key));
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

function useKey(event) {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key").value = "";
  $("key-dialog").close();
  showError(null);
  showService();
  showFiles();
}

// ---- events

const drop = $("drop");
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault(); // a file dropped beside the field must not replace the page
  drop.classList.remove("over");
  addFiles(event.dataTransfer.files);
});
$("choose").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", async (event) => {
  await addFiles(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
$("start").addEventListener("click", start);
$("cancel").addEventListener("click", () => state.running?.abort());
$("text").addEventListener("input", () => {
  if (!state.entry) return;
  state.entry.edited = $("text").value;
  $("undo").hidden = state.entry.edited === state.entry.report.text;
});
$("undo").addEventListener("click", () => {
  state.entry.edited = $("text").value = state.entry.report.text;
  $("undo").hidden = true;
  $("text").focus();
});
$("copy").addEventListener("click", copy);
$("json").addEventListener("click", () => download(new Blob([jsonOf(state.entry)], { type: "application/json" }), "report.json"));
$("sr").addEventListener("click", () => saveDocument("application/dicom", "sr", "DICOM SR", "report.dcm"));
$("pdf").addEventListener("click", () => saveDocument("application/pdf", "pdf", "PDF", "report.pdf"));
$("colour").addEventListener("change", showColour);
$("key-form").addEventListener("submit", useKey);
$("key-cancel").addEventListener("click", () => $("key-dialog").close());
$("forget").addEventListener("click", () => { key.forget(); $("forget").hidden = true; $("choose").focus(); });

// What the page scrolls to must not end up behind the notice.
new ResizeObserver(() => {
  document.documentElement.style.setProperty("--notice-height", `${$("notice").offsetHeight}px`);
}).observe($("notice"));

$("preset").replaceChildren(new Option(text.presetDefault, ""));
showLegend($("legend"));
showButtons();
showService();
