"""Audit: a line for each report, of who asked by the name of the key, when, for what, with which bundle and settings.

Hashes of the images and of the text, so that a report can be matched with its line; no text and no patient.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r2gen_export.errors import R2GenError, cause_of
from r2gen_export.serving.log import EventLog, LineWriter


class Audit:
    """Appends lines to a file that only its owner may read, or writes them into the log.

    Args:
        path: the file, made when it is not there; None takes the log.
        log: the service's.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE` when the file cannot be written.
    """

    def __init__(self, path: Path | None, log: EventLog) -> None:
        self._log = log
        self._file: int | None = None
        if path is not None:
            try:
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise _unwritten(error) from error
            self._lines = LineWriter(cut=_ends_within_line(path))

    def report(self, key: str, request_id: str, form: str, report: Mapping[str, Any]) -> None:
        """A report that is about to be given out.

        Args:
            key: the name of the key, empty without keys.
            request_id: of the answer.
            form: in which it is given.
            report: as `Report.to_dict` has it.

        Raises:
            R2GenError: `R2G-OUTPUT-WRITE` when the line is not in the file as a whole: the report is not given then.
        """
        fields = {
            "key": key,
            "request": request_id,
            "form": form,
            "time": report["created"],
            "bundle": report["bundle_id"],
            "model": report["model_id"],
            "backend": report["execution_provider"],
            "release": report["r2gen_version"],
            "preset": report["preset"],
            "semantics": report["semantics"],
            "decoding": report["decoding"],
            "inputs_sha256": list(report["inputs"]),
            "text_sha256": hashlib.sha256(report["text"].encode("utf-8", "surrogatepass")).hexdigest(),
            "tokens": len(report["token_ids"]),
        }
        if self._file is None:
            self._log("audit", **fields)
            return
        try:
            self._lines.write(self._file, json.dumps(fields, ensure_ascii=True))
        except OSError as error:
            raise _unwritten(error) from error

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _ends_within_line(path: Path) -> bool:
    """Whether the last line has no end, since an earlier service found the disk full. False where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.seek(0, os.SEEK_END) > 0 and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
    except OSError:
        return False


def _unwritten(error: OSError) -> R2GenError:
    message = f"the audit file cannot be written ({cause_of(error)}), and no report is given without its line"
    return R2GenError("R2G-OUTPUT-WRITE", message, "make room for --audit-file, or check its permissions")
