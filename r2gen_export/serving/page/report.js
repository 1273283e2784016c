// What a report shows beside its text, and the forms in which it leaves the page.

import { say } from "./strings.js";

const STAGES = ["preprocess", "encode", "prefill", "decode", "detokenize"];

export function showStages(bar, list, timings) {
  const stages = STAGES.filter((name) => name in timings).map((name) => [name, timings[name]]);
  const sum = stages.reduce((all, [, ms]) => all + ms, 0);
  // Decoder passes are shared with other studies, so the stages need not add up to the total.
  const whole = Math.max(timings.total ?? 0, sum) || 1;
  const parts = [...stages, [say.rest, whole - sum]];
  bar.replaceChildren(...parts.map(([name, ms]) => {
    const part = document.createElement("span");
    part.className = name;
    part.style.flexGrow = String(ms / whole);
    return part;
  }));
  list.replaceChildren(...parts.map(([name, ms]) => {
    const item = document.createElement("li");
    const mark = document.createElement("i");
    mark.className = name;
    item.append(mark, say.stage(name, ms, Math.round((100 * ms) / whole)));
    return item;
  }));
  if (timings.total) {
    const total = document.createElement("li");
    total.textContent = say.total(timings.total);
    list.append(total);
  }
}

export function showFacts(place, facts) {
  place.replaceChildren(...Object.entries(facts).filter(([, value]) => value).map(([name, value]) => {
    const group = document.createElement("div");
    const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
    term.textContent = name;
    detail.textContent = String(value);
    group.append(term, detail);
    return group;
  }));
}

// The text with its warnings and the notice, as `r2gen infer` writes it: the notice goes wherever the text goes.
export function withNotice(words, report) {
  return [words, ...report.warnings.map((warning) => `WARNING ${warning}`), `| ${report.notice}`].join("\n\n");
}

// The report's JSON as it came, number by number, and the changed text beside it.
export function jsonOf({ raw, report, edited }) {
  if (edited === report.text) return `${raw}\n`;
  return `${raw.trimEnd().slice(0, -1)}, "edited_text": ${JSON.stringify(edited)}}\n`;
}

export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
