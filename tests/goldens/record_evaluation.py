"""Record `evaluation.json`: 50 own pairs and what other programs make of them. Needs Java and pycocoevalcap 1.2.

Words are split by the Stanford jar (`coco`) or by the published clean-up (`r2gengpt`, `r2gen`); scores come from
pycocoevalcap. `python -m tests.goldens.record_evaluation` writes the file.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from tests.helpers.own_reports import own_pairs, own_reports

FILE = Path(__file__).with_name("evaluation.json")


def scores(texts: list[str], references: list[str]) -> dict[str, float]:
    """The metrics of pycocoevalcap."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    expected, given = ({number: [text] for number, text in enumerate(side)} for side in (references, texts))
    with contextlib.redirect_stdout(io.StringIO()):
        values = {f"BLEU-{n}": v for n, v in enumerate(Bleu(4).compute_score(expected, given)[0], start=1)}
        values["ROUGE-L"] = float(Rouge().compute_score(expected, given)[0])
        values["CIDEr"] = float(Cider().compute_score(expected, given)[0])
    return values


def split_by_the_jar(texts: list[str]) -> list[str]:
    """Words of coco-caption's own tokenizer."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokens = PTBTokenizer().tokenize({number: [{"caption": text}] for number, text in enumerate(texts)})
    return [tokens[number][0] for number in range(len(texts))]


def r2gen_references(references: list[str], training: list[str]) -> list[str]:
    """R2Gen's references: ids of words seen three times, 59 of them, decoded again."""
    from r2gen_export.studies.report_cleaning import clean_iu_xray

    seen = Counter(word for report in training for word in clean_iu_xray(report).split())
    shortened = [clean_iu_xray(reference).split()[:59] for reference in references]
    return [" ".join(word if seen[word] >= 3 else "<unk>" for word in words) for words in shortened]


def record() -> dict[str, Any]:
    """Pairs, training reports, and the expected scores by protocol."""
    from r2gen_export.bundle import demo_bundle
    from r2gen_export.evaluation.protocols import TokenizerCutter
    from r2gen_export.studies.report_cleaning import clean_iu_xray

    texts, references = own_pairs(50, seed=19)
    references[0] = " ".join(references[:4])  # longer than any cut
    training = own_reports(60, seed=23)
    cutter = TokenizerCutter(Path(demo_bundle()) / "tokenizer.json")
    cleaned = [" ".join(clean_iu_xray(text).split()) for text in texts]
    return {
        "texts": texts,
        "references": references,
        "training": training,
        "expected": {
            "raw": scores(texts, references),
            "coco": scores(split_by_the_jar(texts), split_by_the_jar(references)),
            "r2gen": scores(cleaned, r2gen_references(references, training)),
            "r2gengpt": scores(texts, [cutter(clean_iu_xray(text), 60)[0] for text in references]),
        },
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(record(), indent=1) + "\n", encoding="utf-8")
