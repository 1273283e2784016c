"""r2gen: an R2GenGPT model from PyTorch to a hospital GPU workstation. Research use only."""

import os
import sys
from typing import Final

__version__ = "0.1.0"

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
