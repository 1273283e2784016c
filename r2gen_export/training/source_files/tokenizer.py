"""The files of an LLM's tokenizer into one record: tokenizer_config, special_tokens_map, added_tokens, tokenizer.json.

What is here follows transformers 4.57 `PreTrainedTokenizerBase._from_pretrained`, and accepts what transformers 5
writes: class `TokenizersBackend`, special tokens as lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.training.source_files.fields import LARGEST, Fields, read_object, shown
from r2gen_export.training.source_files.place import missing, source_file, source_name

WHAT: Final = "tokenizer of the LLM"

CLASSES: Final = (
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "SentencePieceBackend",
    "CodeLlamaTokenizer",
    "CodeLlamaTokenizerFast",
)
"""Classes of transformers 4 and 5 whose files say all there is to say."""

DEFAULTS: Final = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
"""`LlamaTokenizer`'s own."""

FOREIGN: Final[dict[str, tuple[Any, ...]]] = {
    "auto_map": ({},),
    "sp_model_kwargs": ({},),
    "split_special_tokens": (False,),
    "do_lower_case": (False,),
    "remove_space": (False,),
}
"""Settings that would tokenise otherwise than `tokenizer.json` does, with the values under which they do not."""

FLAGS: Final = ("lstrip", "rstrip", "single_word", "normalized", "special")

FIX: Final = "correct the file, or use the tokenizer files published with the LLM"


@dataclass(frozen=True)
class AddedWord:
    """A word added to the vocabulary; the flags are those of `tokenizers.AddedToken`."""

    content: str
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False
    special: bool = False


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files say.

    Attributes:
        model: `tokenizer.model` (sentencepiece), None without one.
        json: `tokenizer.json`, None without one.
        specials: `unk_token`, `bos_token` and `eos_token`, those the files name.
        more_specials: further special tokens.
        added: words by id.
        legacy: of `LlamaTokenizer`: every piece between special tokens gets a blank in front.
        add_prefix_space: of `LlamaTokenizer`.
    """

    model: Path | None
    json: Path | None
    specials: Mapping[str, str] = field(default_factory=dict)
    more_specials: tuple[str, ...] = ()
    added: Mapping[int, AddedWord] = field(default_factory=dict)
    legacy: bool = True
    add_prefix_space: bool = True


def read_tokenizer_files(llm: str | Path) -> TokenizerFiles:
    """The record of a folder's tokenizer files.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` without a readable tokenizer; `R2G-MODEL-UNSUPPORTED`, naming file and field,
            for malformed values, files that contradict each other, and a class of its own.
    """
    model, json_file = (source_file(llm, name, WHAT) for name in ("tokenizer.model", "tokenizer.json"))
    if model is None and json_file is None:
        raise missing(WHAT, llm, "it holds neither tokenizer.model nor tokenizer.json")
    config = _fields(llm, "tokenizer_config.json")
    config.text("tokenizer_class", None, choices=CLASSES)
    config.require_neutral(FOREIGN, FIX)
    specials, more = _specials(config, _fields(llm, "special_tokens_map.json"))
    return TokenizerFiles(
        model=model,
        json=json_file,
        specials=specials,
        more_specials=more,
        added=_added(llm, config, {*specials.values(), *more}, json_file if model is not None else None),
        legacy=config.flag("legacy", True, null=True),
        add_prefix_space=config.flag("add_prefix_space", True, null=True),
    )


def _fields(llm: str | Path, name: str) -> Fields:
    """An optional file; an empty object when it is not there."""
    path = source_file(llm, name, WHAT)
    values = read_object(path, WHAT, llm) if path is not None else {}
    return Fields(values, name, f"the LLM {source_name(llm)!r}")


def _content(fields: Fields, name: str, value: Any) -> str:
    """Text of a special token, which the files write as text or as an object with `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not content:
        raise fields.refusal(name, "text, or an object with content", FIX)
    return content


def _specials(config: Fields, table: Fields) -> tuple[dict[str, str], tuple[str, ...]]:
    specials: dict[str, str] = {}
    for name in DEFAULTS:
        given = {
            fields.file: _content(fields, name, fields.values[name]) for fields in (config, table) if name in fields
        }
        if len(set(given.values())) > 1:
            listed = ", but ".join(f"{file} says {name} is {shown(text)}" for file, text in given.items())
            message = f"the tokenizer of {config.owner}: {listed}"
            raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "leave the one the LLM was trained with")
        if given:
            specials[name] = next(iter(given.values()))
    more: dict[str, None] = {}
    for fields in (config, table):
        for name in ("additional_special_tokens", "extra_special_tokens"):
            value = fields.values.get(name)
            if value is None:
                continue
            listed_tokens = list(value.values()) if isinstance(value, dict) else value
            if not isinstance(listed_tokens, list):
                raise fields.refusal(name, "a list of tokens", FIX)
            more.update(dict.fromkeys(_content(fields, name, item) for item in listed_tokens))
    return specials, tuple(more)


def _added(llm: str | Path, config: Fields, special: set[str], json_file: Path | None) -> dict[int, AddedWord]:
    """Added words by id: tokenizer_config.json's; else those of added_tokens.json and `json_file`."""
    words: dict[int, AddedWord] = {}
    table = config.values.get("added_tokens_decoder")
    if table is not None:
        if not isinstance(table, dict):
            raise config.refusal("added_tokens_decoder", "an object of id and token", FIX)
        for number, entry in table.items():
            words[_id(config, "added_tokens_decoder", number)] = _word(config, "added_tokens_decoder", entry)
    elif json_file is not None:
        entries = read_object(json_file, WHAT, llm).get("added_tokens") or []
        fields = Fields({"added_tokens": entries}, json_file.name, config.owner)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise fields.refusal("added_tokens", "a list of objects with id and content", FIX)
        for entry in entries:
            words[_id(fields, "added_tokens", entry.get("id"))] = _word(fields, "added_tokens", entry)
    legacy = _fields(llm, "added_tokens.json")
    for content, number in legacy.values.items():
        at = _id(legacy, content, number)
        known = words.get(at)
        if not content or (known is not None and known.content != content):
            expected = f"another id: {at} is {shown(known.content)}" if known is not None else "an id of a word"
            raise legacy.refusal(content, expected, FIX)
        if known is None:
            words[at] = AddedWord(content, normalized=content not in special, special=content in special)
    repeated = [word.content for word in words.values()]
    if twice := sorted({content for content in repeated if repeated.count(content) > 1}):
        message = f"the tokenizer of {config.owner} has the added words {', '.join(map(shown, twice))} more than once"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, FIX)
    return dict(sorted(words.items()))


def _id(fields: Fields, name: str, value: Any) -> int:
    number = int(value) if isinstance(value, str) and value.isascii() and value.isdecimal() else value
    if type(number) is not int or not 0 <= number <= LARGEST:
        raise fields.refusal(name, "ids that are whole numbers", FIX)
    return number


def _word(fields: Fields, name: str, entry: Any) -> AddedWord:
    if not isinstance(entry, dict):
        raise fields.refusal(name, "objects with content", FIX)
    flags = {flag: entry[flag] for flag in FLAGS if entry.get(flag) is not None}
    if not all(type(value) is bool for value in flags.values()):
        raise fields.refusal(name, f"true or false for {', '.join(FLAGS)}", FIX)
    content = _content(fields, name, entry)
    return AddedWord(content, **{"normalized": not flags.get("special", False), **flags})
