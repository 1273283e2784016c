"""`run.json`: which run a folder belongs to, and how long it is to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.system.files import atomic_file
from r2gen_export.training.settings import TrainSettings

RUN: Final = "run.json"
LENGTH: Final = "max_epochs"


def claim(settings: TrainSettings, sources: dict[str, str]) -> int | None:
    """Make a folder this run's, or see that it is. A folder belongs to one run; a resumed run must be the same one.

    The number of epochs alone may grow. The record then has the new one, and under `lengthened` a pair
    [before, after] for each time.

    Returns:
        The epochs the run had before, when it is lengthened; else None.

    Raises:
        R2GenError: `R2G-OUTPUT-EXISTS`, `R2G-CONFIG-VALUE`, `R2G-CHECKPOINT-FORMAT`, `R2G-OUTPUT-WRITE`.
    """
    out = settings.out
    record = out / RUN
    expected = json.loads(json.dumps({"settings": settings.identity(), "sources": sources}))
    if out.exists() and not settings.resume and (not out.is_dir() or any(out.iterdir())):
        fix = "continue it with --resume, or name another --out" if record.exists() else "name another --out"
        raise R2GenError("R2G-OUTPUT-EXISTS", "the folder of --out exists already", fix)
    if not record.exists():
        _write(record, expected)
        return None
    try:
        recorded = json.loads(record.read_text(encoding="utf-8"))
        differing = [
            f"{name} {recorded[part].get(name)!r} became {value!r}"
            for part in expected
            for name, value in expected[part].items()
            if recorded[part].get(name) != value and name != LENGTH
        ]
        before = int(recorded["settings"][LENGTH])
        pairs = [*recorded.get("lengthened", []), [before, settings.max_epochs]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise R2GenError("R2G-CHECKPOINT-FORMAT", f"{RUN} of --out is damaged", "name another --out") from error
    if settings.max_epochs < before:
        differing.append(f"{LENGTH} {before} became {settings.max_epochs}, and only more can be added")
    if differing:
        message = f"the run in --out has other settings: {', '.join(differing)}"
        raise R2GenError("R2G-CONFIG-VALUE", message, "resume with its settings, or name another --out")
    if settings.max_epochs == before:
        return None
    _write(record, {**expected, "lengthened": pairs})
    return before


def _write(record: Path, content: dict[str, Any]) -> None:
    with atomic_file(record) as scratch:
        scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
