"""The tokenizer of an LLM from its files' record, and whether the runtime can follow it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Final

import transformers
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from r2gen_export.errors import R2GenError
from r2gen_export.training.source_files.fields import read_object, shown
from r2gen_export.training.source_files.llama import read_llama
from r2gen_export.training.source_files.place import missing, source_file, source_name
from r2gen_export.training.source_files.tokenizer import DEFAULTS, WHAT, TokenizerFiles, read_tokenizer_files

PAD_TOKEN_ID: Final = 0
"""The published code sets `pad_token_id = 0`, which is `<unk>` for LLaMA."""

PUBLISHED_IDS: Final = {"unk_token": 0, "bos_token": 1}
"""Ids the published code relies on: it pads with 0, and drops a leading 0 and 1 from what was generated."""

END: Final = "</s>"
"""Ends every report in training, and is where the published `decode` cuts."""

TRIAL: Final = ("Human: <Img>", "</Img> The heart is mildly enlarged (2.5 cm).\n", "")


def load_tokenizer(llm: str | Path) -> PreTrainedTokenizerBase:
    """The LLM's tokenizer, with `pad_token_id = 0` as in the published code.

    The published code uses the slow `LlamaTokenizer`; so does this when the source has a `tokenizer.model` and
    sentencepiece is installed. Otherwise `tokenizer.json` is read.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` when there is no readable tokenizer; `R2G-MODEL-UNSUPPORTED` for one whose
            special tokens or end of text the runtime cannot follow.
    """
    files = read_tokenizer_files(llm)
    name = source_name(llm)
    try:
        tokenizer = _build(files, llm)
        for text in TRIAL:
            tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids)
    except R2GenError:
        raise
    except (KeyboardInterrupt, SystemExit):
        raise
    # tokenizers and sentencepiece raise bare Exception for damage; a panic of Rust code is a BaseException.
    except BaseException as error:
        raise missing(WHAT, llm, str(error) or type(error).__name__, "download its files again") from error
    _require_published(tokenizer, name)
    _require_added(tokenizer, files, name)
    _require_stop(tokenizer, llm, name)
    tokenizer.pad_token_id = PAD_TOKEN_ID
    return tokenizer


def _build(files: TokenizerFiles, llm: str | Path) -> PreTrainedTokenizerBase:
    added = {
        number: AddedToken(
            word.content,
            lstrip=word.lstrip,
            rstrip=word.rstrip,
            single_word=word.single_word,
            normalized=word.normalized,
            special=word.special,
        )
        for number, word in files.added.items()
    }
    more = list(files.more_specials)
    specials = {**DEFAULTS, **files.specials}
    if files.model is not None and importlib.util.find_spec("sentencepiece"):
        slow: PreTrainedTokenizerBase = transformers.LlamaTokenizer(
            str(files.model),
            unk_token=specials["unk_token"],
            bos_token=specials["bos_token"],
            eos_token=specials["eos_token"],
            added_tokens_decoder=added,
            additional_special_tokens=more,
            legacy=files.legacy,
            add_prefix_space=files.add_prefix_space,
        )
        return slow
    if files.json is None:
        message = f"the tokenizer of the LLM {source_name(llm)!r} is a sentencepiece tokenizer.model"
        raise R2GenError(
            "R2G-DEPENDENCY-MISSING",
            f"{message}, for which sentencepiece is not installed",
            "pip install sentencepiece protobuf",
        )
    return PreTrainedTokenizerFast(
        tokenizer_file=str(files.json),
        **{**_implied(files, llm), **files.specials},
        added_tokens_decoder=added,
        additional_special_tokens=more,
    )


def _implied(files: TokenizerFiles, llm: str | Path) -> dict[str, str]:
    """LLaMA's special tokens where no file names them and `tokenizer.json` has them as added tokens or unknown."""
    assert files.json is not None
    record = read_object(files.json, WHAT, llm)
    entries, model = record.get("added_tokens"), record.get("model")
    words = (
        {entry.get("content") for entry in entries if isinstance(entry, dict)} if isinstance(entries, list) else set()
    )
    if isinstance(model, dict):
        words.add(model.get("unk_token"))
    return {name: text for name, text in DEFAULTS.items() if text in words}


def _require_published(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse tokenizers to which the published rules do not apply: the runtime follows these rules."""
    problems = []
    for special, expected in PUBLISHED_IDS.items():
        actual = getattr(tokenizer, f"{special}_id")
        if actual != expected:
            text = getattr(tokenizer, special)
            at = f"{shown(text)} with id {actual}" if text is not None else "none"
            problems.append(f"{special} is {at}, expected id {expected}")
    if tokenizer.eos_token_id is None or tokenizer.eos_token != END:
        problems.append(f"eos_token is {shown(tokenizer.eos_token)}, expected {shown(END)}")
    if problems:
        message = f"the tokenizer of the LLM {name!r}: {'; '.join(problems)}; R2GenGPT's reports rely on these"
        fix = "use an LLM with LLaMA 1's or 2's tokenizer; or correct the tokens in tokenizer_config.json"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, fix)


def _require_added(tokenizer: PreTrainedTokenizerBase, files: TokenizerFiles, name: str) -> None:
    """Refuse added words that did not get the ids the files give them."""
    for number, word in files.added.items():
        actual = tokenizer.convert_tokens_to_ids(word.content)
        if actual != number or tokenizer.convert_ids_to_tokens(number) != word.content:
            message = f"the tokenizer of the LLM {name!r}: the added word {shown(word.content)} has id {actual}"
            fix = "correct added_tokens.json or added_tokens_decoder in tokenizer_config.json"
            raise R2GenError("R2G-MODEL-UNSUPPORTED", f"{message}, its files say {number}", fix)


def _require_stop(tokenizer: PreTrainedTokenizerBase, llm: str | Path, name: str) -> None:
    """Refuse an LLM whose `generate` stops at other ids than the one the runtime stops at."""
    if source_file(llm, "config.json", WHAT) is None:
        return
    stops = read_llama(llm).stops
    if stops is not None and set(stops) != {tokenizer.eos_token_id}:
        message = (
            f"the LLM {name!r} stops at the ids {', '.join(map(str, stops))} (eos_token_id), its tokenizer ends a "
            f"report with {END!r}, id {tokenizer.eos_token_id}; a bundle stops at that one id only"
        )
        fix = "correct eos_token_id in generation_config.json and config.json"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, fix)
