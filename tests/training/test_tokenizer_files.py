"""Tokenizer files of transformers 4 and 5: read as they are meant, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaTokenizer

from r2gen_export.errors import R2GenError
from r2gen_export.exporting.tokenizer import added_word_texts, check_tokenizer, write_tokenizer
from r2gen_export.runtime.detokenizer import Detokenizer
from r2gen_export.training.hub import load_tokenizer
from r2gen_export.training.model import PROMPT_AFTER, PROMPT_BEFORE, prompt_pieces, report_text
from tests.helpers.tiny import make_tiny_llm

GOLDENS = Path(__file__).parents[1] / "goldens"
PIECES = 480
"""Of goldens/llama.model."""

TEXTS = (
    "no cardiomegaly is seen .",
    "The heart is enlarged; <Img> ___ 3.5 cm\n",
    "cardiomegaly.",
    " cardiomegalycardiomegaly",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llm(tmp_path_factory.mktemp("fast") / "llm")


@pytest.fixture
def fast(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "llm"))


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    folder = tmp_path / "slow"
    folder.mkdir()
    shutil.copyfile(GOLDENS / "llama.model", folder / "tokenizer.model")
    put(folder, "tokenizer_config.json", tokenizer_class="LlamaTokenizer", legacy=True)
    return folder


def put(folder: Path, name: str, **fields: Any) -> Path:
    """Replace or add fields of a JSON file; None takes one away."""
    path = folder / name
    record = {**(json.loads(path.read_text()) if path.exists() else {}), **fields}
    path.write_text(json.dumps(record))
    return folder


def refusal(folder: Path, *parts: str, code: str = "R2G-MODEL-UNSUPPORTED") -> None:
    with pytest.raises(R2GenError) as caught:
        load_tokenizer(folder)
    assert caught.value.code == code, caught.value
    for part in parts:
        assert part in caught.value.message, caught.value.message
    assert caught.value.fix


FIVE: dict[str, dict[str, Any]] = {
    "class": {"tokenizer_class": "TokenizersBackend", "backend": "tokenizers"},
    "lists": {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<pad>", "<Img>"]},
    "objects": {"bos_token": {"content": "<s>", "__type": "AddedToken"}, "additional_special_tokens": []},
    "no class": {"tokenizer_class": None},
    "named": {"extra_special_tokens": {"image_token": "<Img>"}},
}


@pytest.mark.parametrize("name", FIVE)
def test_configurations_of_transformers_5(fast: Path, name: str) -> None:
    expected = AutoTokenizer.from_pretrained(fast)
    tokenizer = load_tokenizer(put(fast, "tokenizer_config.json", **FIVE[name]))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    for text in (PROMPT_AFTER, "the heart is enlarged ."):
        if "extra_special_tokens" not in FIVE[name]:
            assert (
                tokenizer(text, add_special_tokens=False).input_ids
                == expected(text, add_special_tokens=False).input_ids
            )
    special = FIVE[name].get("extra_special_tokens")
    for word in special.values() if isinstance(special, dict) else special or ():
        assert tokenizer.convert_tokens_to_ids(word) >= 120 or word in expected.get_vocab()


@pytest.mark.parametrize("form", ["added_tokens.json", "added_tokens_decoder", "tokenizer.json"])
@pytest.mark.parametrize("words", [("cardiomegaly",), ("<Img>", "</Img>"), ("cardiomegaly", "<pad>")])
def test_added_words_of_a_slow_tokenizer_reach_the_bundle(
    slow: Path, tmp_path: Path, form: str, words: tuple[str, ...]
) -> None:
    numbered = {word: PIECES + index for index, word in enumerate(words)}
    if form == "added_tokens.json":
        put(slow, form, **numbered)
    elif form == "added_tokens_decoder":
        put(
            slow,
            "tokenizer_config.json",
            added_tokens_decoder={str(at): {"content": word} for word, at in numbered.items()},
        )
    else:
        put(slow, form, added_tokens=[{"id": at, "content": word, "special": False} for word, at in numbered.items()])
    tokenizer = load_tokenizer(slow)
    if form != "tokenizer.json":  # transformers itself reads that one only in some releases
        expected = LlamaTokenizer.from_pretrained(slow)
        for text in TEXTS:
            assert (
                tokenizer(text, add_special_tokens=False).input_ids
                == expected(text, add_special_tokens=False).input_ids
            )
    assert any(words[0] in text for text in added_word_texts(tokenizer)), "the gate looks at them"
    path = tmp_path / "written.json"
    write_tokenizer(tokenizer, path)
    halves = list(zip((PROMPT_BEFORE, PROMPT_AFTER), prompt_pieces(tokenizer), strict=True))
    assert [check.passed for check in check_tokenizer(tokenizer, path, halves)] == [True, True]
    written, detokenizer = Tokenizer.from_file(str(path)), Detokenizer(path, unk_token_id=0, bos_token_id=1)
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert written.encode(text, add_special_tokens=False).ids == ids
        for tail in ([], [2], [2, 7]):
            assert detokenizer.text([*ids, *tail]) == report_text(tokenizer, [*ids, *tail])
            stream = detokenizer.stream()
            assert "".join([*map(stream.push, [*ids, *tail]), stream.finish()]) == detokenizer.text([*ids, *tail])
    if words[0] == "cardiomegaly":
        ids = tokenizer("no cardiomegaly is seen", add_special_tokens=False).input_ids
        assert PIECES in ids
        assert "cardiomegaly" in detokenizer.text(ids).split()


def test_the_gate_sees_a_lost_added_word(slow: Path, tmp_path: Path) -> None:
    put(slow, "added_tokens.json", cardiomegaly=PIECES)
    tokenizer, path = load_tokenizer(slow), tmp_path / "written.json"
    write_tokenizer(tokenizer, path)
    record = json.loads(path.read_text())
    record["added_tokens"] = [entry for entry in record["added_tokens"] if entry["id"] < PIECES]
    path.write_text(json.dumps(record))
    assert not any(check.passed for check in check_tokenizer(tokenizer, path, ()))


def test_added_words_that_a_tokenizer_json_cannot_hold(slow: Path, tmp_path: Path) -> None:
    put(slow, "added_tokens.json", cardiomegaly=PIECES + 7)
    with pytest.raises(R2GenError, match="'cardiomegaly' with id 487") as caught:
        write_tokenizer(load_tokenizer(slow), tmp_path / "written.json")
    assert caught.value.code == "R2G-MODEL-UNSUPPORTED"


CONTRADICTIONS: dict[str, dict[str, dict[str, Any]]] = {
    '480 is "x"': {
        "added_tokens.json": {"cardiomegaly": 480},
        "tokenizer_config.json": {"added_tokens_decoder": {"480": {"content": "x"}}},
    },
    "more than once": {
        "tokenizer_config.json": {"added_tokens_decoder": {"480": {"content": "x"}, "481": {"content": "x"}}},
    },
    'cardiomegaly is "480x"': {"added_tokens.json": {"cardiomegaly": "480x"}},
    "cardiomegaly is -1": {"added_tokens.json": {"cardiomegaly": -1}},
    "added_tokens_decoder is [1]": {"tokenizer_config.json": {"added_tokens_decoder": [1]}},
    'added_tokens_decoder is {"480": "x"}': {"tokenizer_config.json": {"added_tokens_decoder": {"480": "x"}}},
    "special_tokens_map.json says bos_token": {
        "special_tokens_map.json": {"bos_token": "<x>"},
        "tokenizer_config.json": {"bos_token": "<s>"},
    },
    "bos_token is [": {"tokenizer_config.json": {"bos_token": ["<s>"]}},
    "eos_token is 2": {"tokenizer_config.json": {"eos_token": 2}},
    "unk_token is": {"tokenizer_config.json": {"unk_token": {"content": None}}},
    "extra_special_tokens is 5": {"tokenizer_config.json": {"extra_special_tokens": 5}},
    "additional_special_tokens is [5]": {"tokenizer_config.json": {"additional_special_tokens": [5]}},
    "tokenizer_class": {"tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}},
    "auto_map": {"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["other/repo--code.X", None]}}},
    "sp_model_kwargs": {"tokenizer_config.json": {"sp_model_kwargs": {"enable_sampling": True}}},
    "split_special_tokens": {"tokenizer_config.json": {"split_special_tokens": True}},
    'legacy is "yes"': {"tokenizer_config.json": {"legacy": "yes"}},
}  # fmt: skip


@pytest.mark.parametrize("named", CONTRADICTIONS)
def test_contradictions_and_malformed_values_are_named(slow: Path, named: str) -> None:
    for name, fields in CONTRADICTIONS[named].items():
        put(slow, name, **fields)
    refusal(slow, named)


def test_no_tokenizer_and_damage(slow: Path, fast: Path) -> None:
    (slow / "tokenizer.model").write_bytes((GOLDENS / "llama.model").read_bytes()[:3000])
    refusal(slow, "tokenizer of the LLM", code="R2G-MODEL-MISSING")
    (slow / "tokenizer.model").unlink()
    refusal(slow, "neither tokenizer.model nor tokenizer.json", code="R2G-MODEL-MISSING")
    (fast / "tokenizer.json").write_text('{"version": "1.0"}')
    refusal(fast, "tokenizer of the LLM", code="R2G-MODEL-MISSING")


def llama3_like(folder: Path) -> Path:
    """Ids 0 and 1 are ordinary words, BOS and EOS stand behind the vocabulary; no `<unk>` and no `</s>`."""
    record = json.loads((folder / "tokenizer.json").read_text())
    vocab = record["model"]["vocab"]
    for word in ("<unk>", "<s>", "</s>"):
        vocab[{"<unk>": "!", "<s>": '"', "</s>": "#"}[word]] = vocab.pop(word)
    record["model"]["unk_token"] = None
    specials = ("<|begin_of_text|>", "<|eot_id|>")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    record["added_tokens"] = [{"id": len(vocab) + at, "content": word, **flags} for at, word in enumerate(specials)]
    (folder / "tokenizer.json").write_text(json.dumps(record))
    return put(folder, "tokenizer_config.json", unk_token=None, bos_token=specials[0], eos_token=specials[1])


def test_llama_3_tokenizers_are_refused_with_all_reasons(fast: Path) -> None:
    refusal(llama3_like(fast), "unk_token is none, expected id 0", "bos_token is", 'eos_token is "<|eot_id|>"')


@pytest.mark.parametrize(
    ("generation", "config", "named"),
    [
        ([2, 7], 2, "2, 7"),
        (7, 2, "ids 7"),
        (None, [7, 9], "7, 9"),
        ([2, 2], 7, ""),
        (2, 7, ""),
        (None, 2, ""),
        (None, None, ""),
    ],
)
def test_an_llm_stops_where_its_bundle_does_or_is_refused(fast: Path, generation: Any, config: Any, named: str) -> None:
    put(fast, "config.json", eos_token_id=config)
    put(fast, "generation_config.json", eos_token_id=generation)
    if named:
        refusal(fast, named, "eos_token_id")
    else:
        assert load_tokenizer(fast).eos_token_id == 2


@pytest.mark.parametrize("form", ["added_tokens.json", "added_tokens_decoder", "tokenizer.json"])
@pytest.mark.parametrize("flags", [{}, {"special": True, "normalized": False}, {"normalized": False}, {"lstrip": True}])
def test_added_words_of_a_llama_without_tokenizer_model_reach_the_bundle(
    slow: Path, tmp_path: Path, form: str, flags: dict[str, bool]
) -> None:
    """Their text is what `tokenizers` makes of it: the slow tokenizer puts other blanks around them."""
    write_tokenizer(load_tokenizer(slow), slow / "tokenizer.json")
    (slow / "tokenizer.model").unlink()
    word = {"content": "cardiomegaly", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
            "special": False, **flags}  # fmt: skip
    if form == "added_tokens.json":
        put(slow, form, cardiomegaly=PIECES)
    elif form == "added_tokens_decoder":
        put(slow, "tokenizer_config.json", added_tokens_decoder={str(PIECES): word})
    else:
        listed = json.loads((slow / form).read_text())["added_tokens"]
        put(slow, form, added_tokens=[*listed, {"id": PIECES, **word}])
    tokenizer, path = load_tokenizer(slow), tmp_path / "written.json"
    write_tokenizer(tokenizer, path)
    halves = list(zip((PROMPT_BEFORE, PROMPT_AFTER), prompt_pieces(tokenizer), strict=True))
    assert [check.passed for check in check_tokenizer(tokenizer, path, halves)] == [True, True]
    detokenizer = Detokenizer(path, unk_token_id=0, bos_token_id=1)
    assert detokenizer.grows
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        for tail in ([], [2], [2, 7]):
            assert detokenizer.text([*ids, *tail]) == report_text(tokenizer, [*ids, *tail])
            stream = detokenizer.stream()
            assert "".join([*map(stream.push, [*ids, *tail]), stream.finish()]) == detokenizer.text([*ids, *tail])
