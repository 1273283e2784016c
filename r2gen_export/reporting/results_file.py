"""Results of many studies in one file, JSON lines or text: a run that was stopped goes on where it ended.

While studies are still waiting the results are in `FILE.partial`; `FILE` is there when all of them have been tried.
Every report carries a key of what it was made from: bundle, settings and the content of its images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from r2gen_export.decoding import Decoding, Semantics
from r2gen_export.errors import R2GenError
from r2gen_export.reporting.report import REPORT_SCHEMA
from r2gen_export.system.files import atomic_file, growing_file, partial_path, write_error

Form = Literal["text", "json"]

Numbered = tuple[int, str]
"""A study's number and its report's key."""

TITLE: Final = re.compile(rb"^== study (\d+) of \d+\b.*\n", re.MULTILINE)
KEY: Final = re.compile(rb"\[([0-9a-f]{16})\] ==\n$")
NOTICE_END: Final = re.compile(rb"\n\| [^\n]*\n\n")
"""The notice is the last thing of an entry in text: an entry that has its end is whole."""


def result_key(bundle_id: str, semantics: Semantics, decoding: Decoding, inputs: Sequence[str]) -> str:
    """16 hex digits that are equal for the same bundle, settings and images.

    Args:
        bundle_id: of the bundle.
        semantics: which transformers release's arithmetic.
        decoding: the settings; `seed` None where none was given.
        inputs: SHA-256 of the images, in the order of the views.
    """
    made_from = [bundle_id, semantics, dataclasses.asdict(decoding), list(inputs)]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Earlier:
    """What an earlier run left: the studies' numbers and keys of its reports, each as often as it is there, and the
    entries as bytes.

    Not taken over are entries of studies without a report, which are tried again, and half an entry at the end.
    """

    keys: Counter[Numbered]
    entries: tuple[bytes, ...]


def read_results(path: Path, form: Form) -> Earlier:
    """Read a results file, finished or not.

    Raises:
        R2GenError: `R2G-OUTPUT-EXISTS` when it is no results file of this form; `R2G-OUTPUT-WRITE` when it cannot be
            read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise write_error(path, error) from error
    return _read_lines(data, path.name) if form == "json" else _read_text(data, path.name)


def _read_lines(data: bytes, name: str) -> Earlier:
    keys: Counter[Numbered] = Counter()
    entries = []
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            fields = json.loads(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or "schema" not in fields:
            if number == len(lines):
                continue
            raise _foreign(f"line {number} of {name} is no result of r2gen infer --format json")
        study, key = fields.get("study"), fields.get("key")
        whole = fields["schema"] == REPORT_SCHEMA and line.endswith(b"\n")
        if whole and isinstance(study, int) and isinstance(key, str):
            keys[study, key] += 1
            entries.append(line)
    return Earlier(keys, tuple(entries))


def _read_text(data: bytes, name: str) -> Earlier:
    titles = list(TITLE.finditer(data))
    starts = [title.start() for title in titles]
    if data and starts[:1] != [0]:
        raise _foreign(f"{name} is no result of r2gen infer --format text for many studies")
    keys: Counter[Numbered] = Counter()
    entries = []
    for title, end in zip(titles, [*starts[1:], len(data)], strict=True):
        entry, number = data[title.start() : end], int(title[1])
        key = KEY.search(entry[: entry.index(b"\n") + 1])
        if key and (whole := NOTICE_END.search(entry)):
            keys[number, key[1].decode()] += 1
            entries.append(entry[: whole.end()])
    return Earlier(keys, tuple(entries))


def _foreign(message: str) -> R2GenError:
    return R2GenError("R2G-OUTPUT-EXISTS", message, "name the file and the --format of the run that was stopped")


@contextmanager
def results_file(target: Path, form: Form, *, resume: bool = False) -> Iterator[tuple[Callable[[str], None], Earlier]]:
    """A function that appends one entry to the results, and what an earlier run left of them.

    Args:
        target: the file that is there in the end.
        form: of its entries.
        resume: go on with `target.partial`, or with `target` where it was finished; neither need be there.

    Raises:
        R2GenError: `R2G-OUTPUT-EXISTS`, `R2G-OUTPUT-WRITE`.
    """
    earlier = Earlier(Counter(), ())
    scratch = partial_path(target)
    if resume and (there := next((path for path in (scratch, target) if path.exists()), None)):
        earlier = read_results(there, form)
        if there == target or sum(map(len, earlier.entries)) != there.stat().st_size:
            with atomic_file(scratch) as whole:
                whole.write_bytes(b"".join(earlier.entries))
    with growing_file(target, append=resume) as append:
        yield append, earlier
