"""The demo's tokenizer keeps LLaMA's conventions and any text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from r2gen_export.demo.tokenizer import save_tokenizer, train_tokenizer
from r2gen_export.phantoms import sample_findings, write_report


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    rng = np.random.default_rng(0)
    return train_tokenizer([write_report(sample_findings(rng), rng) for _ in range(500)], 400)


def test_special_ids_are_llamas(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id_to_token(index) for index in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]
    assert tokenizer.get_vocab_size() == 400
    assert tokenizer.encode("No edema.</s>", add_special_tokens=False).ids[-1] == 2
    assert 1 not in tokenizer.encode("No edema.", add_special_tokens=False).ids


@given(text=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="▁"), max_size=40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    if any(special in text for special in ("<unk>", "<s>", "</s>")):
        return
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert 0 not in ids
    assert tokenizer.decode(ids) == text


def test_transformers_reads_the_saved_folder_with_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    save_tokenizer(tokenizer, tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("There is a small left pleural effusion.", "naïve ♥", " two  spaces", "Human: <Img>", "</Img> a\nb:"):
        assert loaded(text, add_special_tokens=False).input_ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id) == (1, 2, 0)
