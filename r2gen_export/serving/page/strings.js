// Every sentence of the page, but for the notice, which index.html shows before any script runs.

export const text = {
  title: "Draft reports of chest radiographs",
  skip: "Skip to the report",
  pictures: "Images of one study",
  dropHint: "Drop PNG, JPEG, TIFF or DICOM files here, all views of one study.",
  choose: "Choose files",
  views: "Views",
  window: "Window",
  level: "Level",
  width: "Width",
  windowReset: "Reset window",
  windowHint:
    "Drag with the mouse, or use the arrow keys on the image: left and right change the width, up and down the level. " +
    "Home resets. The window changes what you see, not what the model reads.",
  preset: "Preset",
  presetDefault: "the bundle's default",
  start: "Write report",
  cancel: "Cancel",
  report: "Draft report",
  nothingYet: "No report yet. Choose the images of one study first.",
  textLabel: "Text of the draft",
  otherPictures: "The images on the left are not those of this report.",
  warnings: "Warnings",
  actions: "What to do with the report",
  copy: "Copy text",
  undo: "Undo my changes",
  json: "Download JSON",
  sr: "Download DICOM SR",
  pdf: "Download PDF",
  documentsHint:
    "SR and PDF are written by the service from the same images and settings; your changes to the text are not in them. " +
    "SR needs DICOM files as the source.",
  colour: "Colour words by their probability",
  wordsLabel: "The draft as the model wrote it, words coloured by probability",
  wordsMissing: "The service gave no probabilities that match this text.",
  timings: "Time by stage",
  history: "Reports of this tab",
  historyHint: "They are gone when the tab is closed or loaded again. Nothing is stored.",
  forget: "Forget the API key",
  keyTitle: "API key",
  keyHint: "This service asks for a key. It stays in this browser tab until the tab is closed.",
  keyLabel: "Key",
  keyUse: "Use key",
  keyCancel: "Cancel",
};

export const say = {
  ready: "The service is ready.",
  notReady: "The service is not ready yet.",
  unreachable: "The service cannot be reached.",
  sending: "Sending the images.",
  writing: "The report is being written.",
  done: (words, ms) => `The report is done: ${words} words in ${milliseconds(ms)}.`,
  cutOff: "The report was cut off at the largest number of tokens.",
  cancelled: "Cancelled. The text is incomplete.",
  failed: "No report was made.",
  incomplete: "The report failed before its end. The text is incomplete.",
  copied: "Copied, with the notice.",
  notCopied: "The browser did not allow copying. Select the text and copy it yourself.",
  making: (kind) => `The service is writing the ${kind}.`,
  made: (kind) => `The ${kind} was downloaded.`,
  of: (names, time) => `Of ${names}, ${time}`,
  files: (count) => (count === 1 ? "1 view is ready." : `${count} views are ready.`),
  view: (number, name) => `View ${number}: ${name}`,
  remove: (number) => `Remove view ${number}`,
  picture: (number, name) => `Preview of view ${number}, ${name}`,
  reading: (number) => `The service is reading view ${number}, which a browser cannot show by itself.`,
  noPreview: (number, error) => `There is no preview of view ${number}. ${say.error(error)}`,
  tryAgain: "Choose the view again to try once more.",
  again: (time, names, words) => `${time}, ${names}: ${words}`,
  stage: (name, ms, share) => `${name} ${milliseconds(ms)} (${share} %)`,
  rest: "rest",
  total: (ms) => `total ${milliseconds(ms)}`,
  error: (error) => {
    const fix = error.fix ? ` What helps: ${sentence(error.fix)}` : "";
    return `${sentence(error.message)}${fix}`;
  },
  word: (word, probability) => `${word}: probability ${percent(probability)}.`,
  inItsPlace: (piece, probability) => `In its place: ${piece}, ${percent(probability)}.`,
  inPlaceOf: (part, own, piece, probability) =>
    `In place of “${part}” (${percent(own)}): ${piece}, ${percent(probability)}.`,
  point: "Point at a word to see its probability.",
  end: "the end of the report",
  noWord: "no visible text",
  legend: "Probability of the word:",
  close: "Dashed frame: another word was at least half as likely; point at it or go to it with the Tab key.",
};

export const facts = {
  model: "Model", bundle: "Bundle", precision: "Precision", backend: "Backend", preset: "Preset", version: "r2gen",
};

// Errors that the page itself sees.
export const pageErrors = {
  connection: {
    code: "R2G-PAGE-CONNECTION",
    message: "the connection to the service failed",
    fix: "check that it is running, then try again",
  },
  answer: (status) => ({
    code: "R2G-PAGE-ANSWER",
    message: `the service's answer (status ${status}) cannot be read`,
    fix: "check that this address is that of r2gen serve, or of a proxy before it",
  }),
  ended: { code: "R2G-PAGE-ENDED", message: "the answer ended before the report was whole", fix: "try again" },
  key: { code: "R2G-PAGE-KEY", message: "the service needs an API key", fix: "ask whoever runs it for one" },
};

export function percent(value) {
  if (value > 0 && value < 0.01) return "below 1 %";
  return value > 0.99 && value < 1 ? "above 99 %" : `${Math.round(value * 100)} %`;
}

export const milliseconds = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms.toFixed(ms < 10 ? 1 : 0)} ms`);

function sentence(words) {
  const begun = words.charAt(0).toUpperCase() + words.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}
