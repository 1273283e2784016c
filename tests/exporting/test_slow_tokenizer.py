"""The `tokenizers` runtime against the slow LLaMA tokenizer of transformers 4.30.2, recorded in `tests/goldens`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from r2gen_export.exporting.tokenizer import write_tokenizer
from r2gen_export.runtime.detokenizer import Detokenizer
from r2gen_export.training.hub import load_tokenizer
from tests.goldens.texts import PROMPT_HALVES, id_rows, strings

GOLDENS = Path(__file__).parents[1] / "goldens"
GOLDEN = json.loads((GOLDENS / "tokenizer430.json").read_text())


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("llm")
    shutil.copy(GOLDENS / "llama.model", folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def written(slow: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "tokenizer.json"
    write_tokenizer(slow, path)
    return path


def test_the_goldens_are_of_these_trials(slow: PreTrainedTokenizerBase) -> None:
    assert [text for text, _ in GOLDEN["encoded"]] == list(strings())
    assert [row for row, _ in GOLDEN["decoded"]] == list(id_rows(len(slow)))
    used = {token for _, ids in GOLDEN["encoded"] for token in ids}
    assert len(used & set(range(3, 259))) > 50, "byte fallback happens"


def test_ids_of_the_slow_tokenizer_of_today(slow: PreTrainedTokenizerBase) -> None:
    """What training and export tokenise with."""
    for text, ids in GOLDEN["encoded"]:
        assert slow(text, add_special_tokens=False).input_ids == ids, repr(text)


def test_ids_of_the_runtime(written: Path) -> None:
    tokenizer = Tokenizer.from_file(str(written))
    for text, ids in GOLDEN["encoded"]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == ids, repr(text)
    assert [text for text, _ in GOLDEN["encoded"][:2]] == list(PROMPT_HALVES)


def test_text_of_the_runtime(written: Path) -> None:
    detokenizer = Detokenizer(written, unk_token_id=0, bos_token_id=1)
    for ids, text in GOLDEN["decoded"]:
        assert detokenizer.text(ids, "hf-4.30") == text, ids
        stream = detokenizer.stream("hf-4.30")
        assert "".join([*map(stream.push, ids), stream.finish()]) == text, ids


def test_text_of_today(slow: PreTrainedTokenizerBase, written: Path) -> None:
    """Semantics `hf-current` against the slow tokenizer of transformers 4.57, through the published `decode`."""
    detokenizer = Detokenizer(written, unk_token_id=0, bos_token_id=1)
    differing = 0
    for row, old in GOLDEN["decoded"]:
        ids = row[1:] if row[0] == 0 else row
        ids = ids[1:] if ids and ids[0] == 1 else ids
        text = slow.decode(ids).split("</s>")[0].strip().replace("<unk>", "") if ids else ""
        assert detokenizer.text(row) == text, row
        stream = detokenizer.stream()
        assert "".join([*map(stream.push, row), stream.finish()]) == text, row
        differing += text != old
    assert differing > 0, "the two semantics give other texts for some ids"
