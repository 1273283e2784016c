"""Reports from files, as the token ids a bundle's model would write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from r2gen_export import bundle as layout
from r2gen_export.bundle import Manifest
from r2gen_export.errors import R2GenError


def read_reports(files: Sequence[Path], dataset: str = "none") -> list[str]:
    """Report texts of `.txt` (one a line), `.jsonl` and `.json` files, empty ones left out.

    JSON: `annotation.json` of R2Gen, all splits but `test`; or objects with `text` (what `infer --format json` writes)
    or `report`.

    Args:
        files: to read, in this order.
        dataset: whose clean-up to apply: `mimic_cxr`, `iu_xray` or `none`.

    Raises:
        R2GenError: `R2G-DATA-ANNOTATION` when a file is not of these forms, `R2G-DATA-EMPTY` when none has a report.
    """
    from r2gen_export.training.reports import clean_iu_xray, clean_mimic_cxr

    cleaners: dict[str, Callable[[str], str]] = {"mimic_cxr": clean_mimic_cxr, "iu_xray": clean_iu_xray}
    clean = cleaners.get(dataset, str.strip)
    texts = [clean(text) for number, path in enumerate(files, start=1) for text in _texts(path, number)]
    if not (found := [text for text in texts if text]):
        raise R2GenError("R2G-DATA-EMPTY", f"no report in {len(files)} files", "name a file with reports")
    return found


def tokenise(bundle: Path, manifest: Manifest, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text and the closing EOS, without BOS: what training made the model write."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(bundle / layout.TOKENIZER))
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [[*one.ids, manifest.prompt.eos_token_id] for one in encoded]


def _texts(path: Path, number: int) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8")
        if path.suffix not in (".json", ".jsonl"):
            return content.splitlines()
        try:
            found: Any = json.loads(content)
        except ValueError:
            found = [json.loads(line) for line in content.splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is neither JSON, nor lines of JSON, nor UTF-8"
        raise _unreadable(number, str(reason)) from error
    if isinstance(found, dict) and isinstance(found.get("train"), list):
        # What a model is scored on stays out: a draft from it would flatter the speed.
        found = [study for split in ("train", "val") for study in found.get(split, [])]
    entries = found if isinstance(found, list) else [found]
    texts = [_text(entry, number) for entry in entries]
    return [text for text in texts if text is not None]


def _text(entry: Any, number: int) -> str | None:
    if isinstance(entry, dict) and "error" in entry:
        return None  # a study `infer` could not report
    text = entry.get("report", entry.get("text")) if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        raise _unreadable(number, "an entry has neither `report` nor `text`")
    return text


def _unreadable(number: int, reason: str) -> R2GenError:
    # By number: the file's name may identify a patient.
    message = f"reports file {number}: {reason}"
    return R2GenError(
        "R2G-DATA-ANNOTATION", message, "give .txt with a report a line, annotation.json, or infer's JSON"
    )
