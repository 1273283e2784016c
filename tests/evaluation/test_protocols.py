"""Protocols: what is done to texts, what each needs, and how references are cut."""

from __future__ import annotations

from pathlib import Path

import pytest

from r2gen_export.bundle import demo_bundle
from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.protocols import PROTOCOLS, Context, TokenizerCutter, prepare, why_not
from r2gen_export.studies.report_cleaning import clean_iu_xray

TRAINING = ["The heart is normal. No effusion."] * 3 + ["A rare word."]


class Every:
    """Cuts at words, each of which is a token."""

    def __call__(self, text: str, tokens: int) -> tuple[str, bool]:
        words = text.split()
        return " ".join(words[:tokens]), len(words) > tokens


def test_raw_and_coco_treat_both_sides_alike() -> None:
    raw, coco = (prepare(name, ["The Heart,  is NORMAL.\n"], Context()) for name in ("raw", "coco"))
    assert raw.references == ("The Heart,  is NORMAL.\n",)
    assert raw.hypothesis("A  b\n") == "A  b\n"
    assert coco.references == ("the heart is normal",)
    assert coco.hypothesis("No\neffusion.") == "no effusion"


def test_r2gengpt_cuts_and_cleans_references_only() -> None:
    long = "The heart is normal. " * 20  # 5 tokens a sentence, the full stop one of them
    prepared = prepare("r2gengpt", [long, "No EFFUSION."], Context("iu_xray", Every()))
    assert prepared.references[0].split() == ["the", "heart", "is", "normal", "."] * 12
    assert prepared.references[1] == "no effusion ."
    assert prepared.cut == 1
    assert prepared.hypothesis("The Heart.") == "The Heart."
    assert "60 tokens" in prepared.description
    assert len(prepare("r2gengpt", [long], Context("mimic_cxr", Every())).references[0].split()) == 100


def test_the_bundles_tokenizer_cuts() -> None:
    cutter = TokenizerCutter(Path(demo_bundle()) / "tokenizer.json")
    text = clean_iu_xray("The heart is normal in size. The lungs are clear. There is no pleural effusion.")
    assert cutter(text, 1000) == (text, False)
    part, cut = cutter(text, 7)
    assert cut
    assert text.startswith(part)
    assert 0 < len(part) < len(text)


def test_r2gen_cuts_at_words_and_replaces_rare_ones() -> None:
    prepared = prepare("r2gen", ["The rare heart is normal.", "heart " * 80], Context("iu_xray", training=TRAINING))
    assert prepared.references[0] == "the <unk> heart is normal ."
    assert len(prepared.references[1].split()) == 59, "of 60 ids the first is the start symbol"
    assert prepared.cut == 1
    assert prepared.hypothesis("The Rare: heart, (small).") == "the rare heart small ."
    assert prepared.notes["unknown_words"] == 1
    mimic = prepare("r2gen", ["Heart: normal."], Context("mimic_cxr", training=["heart normal."] * 10))
    assert mimic.references == ("heart normal .",), "R2Gen takes the colon out, R2GenGPT sets it apart"


def test_what_a_protocol_lacks_is_said() -> None:
    assert [name for name in PROTOCOLS if not why_not(name, Context())] == ["coco", "raw"]
    assert "--dataset" in why_not("r2gengpt", Context(cutter=Every()))
    assert "--tokenizer" in why_not("r2gengpt", Context("iu_xray"))
    assert "training split" in why_not("r2gen", Context("iu_xray"))
    for name in ("r2gen", "bleu"):
        with pytest.raises(R2GenError) as raised:
            prepare(name, ["a"], Context())
        assert raised.value.code == "R2G-CONFIG-VALUE"
