"""The contract of mercure's processing modules: a folder in, a folder out, settings in task.json, result.json.

Source: mercure's documentation ("Module Development") and its `process/process_series.py` and `common/notification.py`.
mercure copies task.json to the results itself, and dispatches the `.dcm` files that it finds beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import CodedError, R2GenError
from r2gen_export.serving.generate import Generator, Job, Made
from r2gen_export.serving.settings import parse_forms
from r2gen_export.system.files import atomic_file

NOTIFICATION: Final = "__mercure_notification"


@dataclass(frozen=True)
class Module:
    """One call: the folders that mercure names, the bundle and the device."""

    source: Path
    target: Path
    bundle: str | None = None
    device: str = "auto"


def run_module(module: Module) -> int:
    """Report the study of a task.

    Returns:
        The number of results that were written.

    Raises:
        R2GenError: there is no report; result.json says why, with a notification that mercure sends.
    """
    try:
        settings = read_settings(module.source)
        forms = parse_forms(str(settings.get("format", "sr,pdf")))
        paths = tuple(sorted(path for path in module.source.glob("*.dcm") if path.is_file()))
        if not paths:
            raise R2GenError("R2G-DATA-EMPTY", "the task has no DICOM files", "use a rule that sends images")
        preset = settings.get("preset")
        generator = Generator(module.bundle, module.device, None if preset is None else str(preset))
        made = generator.make(Job(paths, forms))
        for written in made.results:
            with atomic_file(module.target / f"{_file_name(written.data)}.dcm") as scratch:
                scratch.write_bytes(written.data)
    except CodedError as error:
        text = f"no report: {error.code}: {error.message}"
        _write_result(module.target, {"code": error.code, "message": error.message}, text)
        raise
    _write_result(module.target, _facts(made), "a draft report was written; research use only, not for diagnosis")
    return len(made.results)


def read_settings(folder: Path) -> dict[str, Any]:
    """`process` > `settings` of task.json: those of the rule and of the module; empty where there are none.

    With several modules in a rule, `process` is a list; the entry in question cannot be told, so they must agree.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    file = folder / "task.json"
    if not file.is_file():
        return {}
    try:
        task = json.loads(file.read_bytes())
        process = task.get("process") or {}
        entries = process if isinstance(process, list) else [process]
        given = [entry.get("settings") or {} for entry in entries]
        ours = [{key: value for key, value in entry.items() if key in ("format", "preset")} for entry in given]
    except (ValueError, AttributeError, OSError) as error:
        raise R2GenError("R2G-CONFIG-VALUE", "task.json is not a task of mercure", "check the rule") from error
    named = [entry for entry in ours if entry]
    if any(entry != named[0] for entry in named):
        message = "modules of one rule have different settings format or preset"
        raise R2GenError("R2G-CONFIG-VALUE", message, "give them in the settings of the rule")
    return named[0] if named else {}


def _facts(made: Made) -> dict[str, Any]:
    """What mercure's bookkeeper keeps: no words of the report, which are patient data."""
    return {
        "results": [written.form for written in made.results],
        "warnings": list(made.warnings),
        "timings_ms": {stage: round(value, 1) for stage, value in made.timings_ms.items()},
    }


def _write_result(folder: Path, facts: dict[str, Any], text: str) -> None:
    fields = {"r2gen": facts, NOTIFICATION: {"text": text, "requested": True}}
    with atomic_file(folder / "result.json") as scratch:
        scratch.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _file_name(data: bytes) -> str:
    """`SERIES#INSTANCE`, as mercure names the files of a series."""
    from io import BytesIO

    from pydicom import dcmread

    head = dcmread(BytesIO(data), specific_tags=["SeriesInstanceUID", "SOPInstanceUID"], stop_before_pixels=True)
    return f"{head.SeriesInstanceUID}#{head.SOPInstanceUID}"
