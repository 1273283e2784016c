"""What is done to texts before they are scored. A number means nothing without the name of its protocol.

On the same 590 outputs BLEU-4 is 0.095 (`raw`), 0.131 (`coco`) or 0.163 (`r2gen`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.ptb import ptb_words
from r2gen_export.studies.report_cleaning import clean_iu_xray, clean_mimic_cxr, clean_mimic_cxr_r2gen

DESCRIPTIONS: Final = {
    "r2gengpt": "as R2GenGPT's code: references cleaned, cut at {cut} tokens and decoded; generated text as it is",
    "r2gen": "as R2Gen's code: both sides cleaned, references cut at {words} words, words rare in training as <unk> in "
    "the references",
    "coco": "as coco-caption: both sides split by Penn Treebank rules, lower case, without punctuation",
    "raw": "both sides as they are, split at white space",
}
"""Every protocol, with what it does."""

PROTOCOLS: Final = tuple(DESCRIPTIONS)

TOKENS: Final = {"iu_xray": 60, "mimic_cxr": 100}
"""Tokens (R2GenGPT) that references are cut at. R2Gen's cut counts a start symbol: one word fewer."""

THRESHOLD: Final = {"iu_xray": 3, "mimic_cxr": 10}
"""How often a word must stand in R2Gen's training split to be in its vocabulary."""

CLEAN: Final = {"iu_xray": clean_iu_xray, "mimic_cxr": clean_mimic_cxr}
CLEAN_R2GEN: Final = {"iu_xray": clean_iu_xray, "mimic_cxr": clean_mimic_cxr_r2gen}


class Cutter(Protocol):
    """A tokenizer that cuts texts as R2GenGPT's code cuts references."""

    def __call__(self, text: str, tokens: int) -> tuple[str, bool]:
        """The text of the first `tokens` tokens, and whether there were more."""


@dataclass(frozen=True)
class Context:
    """What protocols may need: data set, the bundle's tokenizer, reports of the training split; None: not given."""

    dataset: str | None = None
    cutter: Cutter | None = None
    training: Sequence[str] | None = None


@dataclass(frozen=True)
class Prepared:
    """References and hypotheses of one protocol, ready to be scored.

    Attributes:
        name: of the protocol.
        description: what was done.
        references: prepared.
        hypothesis: prepares a generated text.
        cut: number of references that lost their end.
        notes: counts to be reported with the numbers.
    """

    name: str
    description: str
    references: tuple[str, ...]
    hypothesis: Callable[[str], str]
    cut: int = 0
    notes: dict[str, float] = field(default_factory=dict)


def why_not(name: str, context: Context) -> str:
    """Why a protocol cannot be followed with what was given; empty when it can."""
    if name in ("r2gengpt", "r2gen") and context.dataset not in TOKENS:
        return "needs --dataset iu_xray or mimic_cxr, which sets the clean-up and the length of references"
    if name == "r2gengpt" and context.cutter is None:
        return "needs a bundle or --tokenizer, whose tokens references are cut by"
    if name == "r2gen" and not context.training:
        return "needs the training split of --annotation, whose words are the vocabulary"
    return ""


def prepare(name: str, references: Sequence[str], context: Context) -> Prepared:
    """Prepare the references of a set, and how its generated texts are to be.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for an unknown protocol, or one that lacks what it needs.
    """
    if name not in PROTOCOLS:
        raise R2GenError("R2G-CONFIG-VALUE", f"no protocol {name!r}", f"choose one of {', '.join(PROTOCOLS)}")
    if reason := why_not(name, context):
        raise R2GenError("R2G-CONFIG-VALUE", f"protocol {name} {reason}", "give it, or choose another --protocol")
    if name == "r2gengpt":
        return _r2gengpt(references, context)
    if name == "r2gen":
        return _r2gen(references, context)
    change = (lambda text: ptb_words(text.replace("\n", " "))) if name == "coco" else str
    return Prepared(name, DESCRIPTIONS[name], tuple(map(change, references)), change)


def _r2gengpt(references: Sequence[str], context: Context) -> Prepared:
    assert context.dataset is not None and context.cutter is not None
    tokens, clean = TOKENS[context.dataset], CLEAN[context.dataset]
    cut = [context.cutter(clean(reference), tokens) for reference in references]
    description = f"{DESCRIPTIONS['r2gengpt'].format(cut=tokens)} ({context.dataset})"
    texts = tuple(text for text, _ in cut)
    return Prepared("r2gengpt", description, texts, str, cut=sum(was for _, was in cut))


def _r2gen(references: Sequence[str], context: Context) -> Prepared:
    assert context.dataset is not None and context.training is not None
    words, clean = TOKENS[context.dataset] - 1, CLEAN_R2GEN[context.dataset]
    seen = Counter(word for report in context.training for word in clean(report).split())
    known = {word for word, count in seen.items() if count >= THRESHOLD[context.dataset]}
    split = [clean(reference).split() for reference in references]
    shortened = [part[:words] for part in split]
    unknown = sum(word not in known for part in shortened for word in part)
    texts = tuple(" ".join(word if word in known else "<unk>" for word in part) for part in shortened)
    description = f"{DESCRIPTIONS['r2gen'].format(words=words)} ({context.dataset})"
    notes = {"unknown_words": float(unknown), "vocabulary": float(len(known))}
    return Prepared(
        "r2gen", description, texts, lambda text: " ".join(clean(text).split()), _longer(split, words), notes
    )


def _longer(split: Sequence[Sequence[str]], words: int) -> int:
    return sum(len(part) > words for part in split)


class TokenizerCutter:
    """Cuts by a `tokenizer.json`: the first tokens, no special ones, decoded as R2GenGPT's code decodes references.

    Args:
        path: the file, as bundles have it.

    Raises:
        R2GenError: `R2G-BUNDLE-MANIFEST` when it is no tokenizer.
    """

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        from r2gen_export.runtime.detokenizer import Detokenizer

        if not path.is_file():
            raise R2GenError("R2G-CONFIG-VALUE", "the file of --tokenizer is not there", "name a tokenizer.json")
        # Ids 0 and 1 are what the published code drops at the beginning.
        self._detokenizer = Detokenizer(path, unk_token_id=0, bos_token_id=1)
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def __call__(self, text: str, tokens: int) -> tuple[str, bool]:
        """As `Cutter`."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return self._detokenizer.text(ids[:tokens], "hf-current"), len(ids) > tokens
