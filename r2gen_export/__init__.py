"""r2gen: an R2GenGPT model from PyTorch to a hospital GPU workstation. Research use only.

`from r2gen_export import Pipeline, Report, export_bundle`: a name is imported when it is first asked for, so that
importing the package costs nothing.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from r2gen_export.bundle import demo_bundle
    from r2gen_export.errors import R2GenError
    from r2gen_export.evaluation.evaluate import Evaluation, evaluate
    from r2gen_export.evaluation.labels import label_report
    from r2gen_export.exporting.export import export_bundle
    from r2gen_export.exporting.settings import ExportSettings
    from r2gen_export.reporting.report import Report
    from r2gen_export.runtime.outcome import Outcome
    from r2gen_export.runtime.pipeline import Pipeline

PUBLIC: Final = {
    "Evaluation": "r2gen_export.evaluation.evaluate",
    "ExportSettings": "r2gen_export.exporting.settings",
    "Outcome": "r2gen_export.runtime.outcome",
    "Pipeline": "r2gen_export.runtime.pipeline",
    "R2GenError": "r2gen_export.errors",
    "Report": "r2gen_export.reporting.report",
    "demo_bundle": "r2gen_export.bundle",
    "evaluate": "r2gen_export.evaluation.evaluate",
    "export_bundle": "r2gen_export.exporting.export",
    "label_report": "r2gen_export.evaluation.labels",
}
"""The public API: each name and the module it comes from. `export_bundle` needs the extra `export`."""

__all__ = [
    "Evaluation",
    "ExportSettings",
    "Outcome",
    "Pipeline",
    "R2GenError",
    "Report",
    "demo_bundle",
    "evaluate",
    "export_bundle",
    "label_report",
]

LIBRARY_SWITCHES: Final = {
    # ONNX Runtime (1.29 and later) writes a device id below ~/.cache/Microsoft when imported, and sends events later.
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Environment variables with which libraries send nothing of their own. They are read when a library is imported."""


def _disable_telemetry() -> None:
    """Set `LIBRARY_SWITCHES` for this process and its children; what the user has set is kept."""
    too_late = "onnxruntime" in sys.modules and "ORT_DISABLE_TELEMETRY" not in os.environ
    for name, value in LIBRARY_SWITCHES.items():
        os.environ.setdefault(name, value)
    if too_late:
        import warnings

        message = (
            "onnxruntime was imported before r2gen_export, so its telemetry is on: "
            "import r2gen_export first, or set ORT_DISABLE_TELEMETRY=1"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=3)


# Here, because Python runs this file before any other module of the package.
_disable_telemetry()


def __getattr__(name: str) -> Any:
    """A name of the public API, imported now."""
    if name == "__version__":
        return importlib.import_module("r2gen_export.system.versions").VERSION
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
