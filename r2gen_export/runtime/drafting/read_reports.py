"""Reports from files, as the token ids a bundle's model would write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from r2gen_export import bundle as layout
from r2gen_export.bundle import Manifest
from r2gen_export.errors import R2GenError
from r2gen_export.studies.annotation import SPLITS, read_splits, read_text


def read_reports(files: Sequence[Path], dataset: str = "none") -> list[str]:
    """Report texts of `.txt` (one a line), `.jsonl` and `.json` files, empty ones left out.

    JSON: `annotation.json` of R2Gen, its splits for training and validation; or objects with `text` (what `infer
    --format json` writes) or `report`.

    Args:
        files: to read, in this order.
        dataset: whose clean-up to apply: `mimic_cxr`, `iu_xray` or `none`.

    Raises:
        R2GenError: `R2G-DATA-ANNOTATION` when a file is not of these forms, `R2G-DATA-EMPTY` when none has a report.
    """
    from r2gen_export.studies.report_cleaning import clean_iu_xray, clean_mimic_cxr

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
    # By number: the file's name may identify a patient.
    subject = f"reports file {number}"
    content = read_text(path, subject)
    if path.suffix.lower() not in (".json", ".jsonl"):
        return content.split("\n")
    try:
        try:
            record: Any = json.loads(content)
        except ValueError:
            record = [json.loads(line) for line in content.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise _unreadable(subject, "it is neither JSON nor lines of JSON") from error
    if isinstance(record, dict) and "report" not in record and "text" not in record and "error" not in record:
        # What a model is scored on stays out: a draft from it would flatter the speed.
        splits, _ = read_splits(path, subject)
        learned = [name for name in splits if name in (*SPLITS["train"], *SPLITS["val"])]
        record = [study for name in learned for study in splits[name]]
    entries = record if isinstance(record, list) else [record]
    texts = [_text(entry, subject) for entry in entries]
    return [text for text in texts if text is not None]


def _text(entry: Any, subject: str) -> str | None:
    if isinstance(entry, dict) and "error" in entry:
        return None  # a study `infer` could not report
    text = entry.get("report", entry.get("text")) if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        raise _unreadable(subject, "an entry has neither `report` nor `text`")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer takes
        raise _unreadable(subject, "an entry's text is not Unicode") from error
    return text


def _unreadable(subject: str, reason: str) -> R2GenError:
    message = f"{subject}: {reason}"
    return R2GenError(
        "R2G-DATA-ANNOTATION", message, "give .txt with a report a line, annotation.json, or infer's JSON"
    )
