// Words with their probabilities, from the report's pieces of text.

import { percent, say } from "./strings.js";

const CLOSE = Math.log(2);
const STEPS = [[0.9, "sure"], [0.6, "likely"], [0.3, "unsure"], [0, "weak"]];

// [{word, logprob, tokens: [{piece, logprob, other}]}], or null where the pieces do not give the text.
export function wordsOf(report) {
  const { pieces = [], logprobs = [], runner_up: others = [] } = report;
  if (!pieces.length || pieces.length !== logprobs.length || pieces.length !== others.length) return null;
  const words = [];
  let atStart = true;
  for (const [index, whole] of pieces.entries()) {
    const end = whole.indexOf("</s>");
    const piece = (end < 0 ? whole : whole.slice(0, end)).replaceAll("<unk>", "");
    const token = { piece, logprob: logprobs[index], other: others[index] };
    // A piece may hold several words, and the end of one with the beginning of the next.
    for (const [number, part] of piece.split(/\s+/).entries()) {
      if (number > 0) atStart = true;
      if (!part) continue;
      if (atStart) words.push({ word: "", logprob: 0, tokens: [] });
      atStart = false;
      const word = words.at(-1);
      word.word += part;
      if (word.tokens.at(-1) !== token) {
        word.tokens.push(token);
        word.logprob += token.logprob;
      }
    }
    if (end >= 0) break;
  }
  const joined = words.map(({ word }) => word).join(" ");
  return joined === report.text.split(/\s+/).filter(Boolean).join(" ") ? words : null;
}

const closeTokens = (word) => word.tokens.filter(({ logprob, other }) => other.logprob > logprob - CLOSE);

const stepOf = (probability) => STEPS.find(([least]) => probability >= least)[1];

function describe(word) {
  const parts = [say.word(word.word, Math.exp(word.logprob))];
  for (const { piece, logprob, other } of closeTokens(word)) {
    const shown = other.piece === "</s>" ? say.end : other.piece.trim() ? `“${other.piece.trim()}”` : say.noWord;
    const likely = Math.exp(other.logprob);
    const whole = piece.trim() === word.word;
    parts.push(whole ? say.inItsPlace(shown, likely) : say.inPlaceOf(piece.trim(), Math.exp(logprob), shown, likely));
  }
  return parts.join(" ");
}

export function showWords(words, place, tip) {
  tip.textContent = say.point;
  place.replaceChildren(...words.flatMap((word) => {
    const close = closeTokens(word).length > 0;
    const element = document.createElement(close ? "button" : "span");
    element.className = `word ${stepOf(Math.exp(word.logprob))}`;
    element.textContent = word.word;
    const show = () => { tip.textContent = describe(word); };
    element.addEventListener("pointerenter", show);
    if (close) {
      element.type = "button";
      element.setAttribute("aria-label", describe(word));
      element.addEventListener("focus", show);
      element.addEventListener("click", show);
    }
    return [element, " "];
  }));
}

export function showLegend(place) {
  const names = STEPS.map(([least, name], index) => {
    const element = document.createElement("span");
    element.className = `word ${name}`;
    element.textContent = index === 0 ? `${percent(least)} or more` : `${percent(least)} to ${percent(STEPS[index - 1][0])}`;
    return element;
  });
  place.replaceChildren(`${say.legend} `, ...names.flatMap((name) => [name, " "]), say.close);
}
