"""OpenVINO without its telemetry."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Final

TELEMETRY: Final = "openvino_telemetry"


def import_openvino() -> Any:
    """The module `openvino`. Every first import of it in r2gen goes through here.

    Its package sends an event to Google Analytics when it is imported, and writes a client id below the home folder,
    unless the package `openvino_telemetry` is missing; then it takes a stub of its own. No variable turns that off.
    """
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    absent = object()
    before: Any = sys.modules.get(TELEMETRY, absent)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # an import of it then raises ImportError
    try:
        return importlib.import_module("openvino")
    finally:
        if before is absent:
            del sys.modules[TELEMETRY]
        else:
            sys.modules[TELEMETRY] = before
