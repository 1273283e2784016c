"""Which TensorRT bindings this machine can import, and why not. Needs no TensorRT itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BINDINGS: Final[dict[str, tuple[str, ...]]] = {
    "TensorRT": ("tensorrt", "tensorrt_bindings"),
    "TensorRT-RTX": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Products and the modules that hold their Python bindings, the umbrella package first."""

LEAN: Final = ("tensorrt_lean", "tensorrt_lean_bindings")
"""TensorRT's lean runtime. It has no builder and no parser, and runs plans built as version-compatible alone."""

INSTALL: Final[dict[str, str]] = {
    "TensorRT": "pip install 'tensorrt>=10.15,<12'",
    "TensorRT-RTX": "pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
}


@dataclass(frozen=True)
class BindingProbe:
    """One product. `module` and `version` are set when its bindings import, `reason` says why they do not."""

    product: str
    module: str | None
    version: str | None
    reason: str

    @property
    def usable(self) -> bool:
        """Whether the bindings import. An engine needs a GPU and its driver beyond that."""
        return self.module is not None


def why_absent(product: str) -> str:
    """What to say of a product none of whose bindings are installed."""
    if product == "TensorRT" and any(importlib.util.find_spec(module) is not None for module in LEAN):
        return "not installed but for its lean runtime: runs version-compatible plans only, r2gen builds none yet"
    return "not installed"


def probe_bindings(*, timeout_s: float = 60.0) -> list[BindingProbe]:
    """Try every product's bindings, each in a child process: a broken native library may end the one that loads it.

    Args:
        timeout_s: seconds one import may take.
    """
    return [_probe(product, modules, timeout_s) for product, modules in BINDINGS.items()]


def _probe(product: str, modules: Sequence[str], timeout_s: float) -> BindingProbe:
    installed = [module for module in modules if importlib.util.find_spec(module) is not None]
    if not installed:
        return BindingProbe(product, None, None, f"{why_absent(product)} ({INSTALL[product]})")
    reasons = []
    for module in installed:
        version, reason = _import_apart(module, timeout_s)
        if version is not None:
            return BindingProbe(product, module, version, "")
        reasons.append(f"{module}: {reason}")
    return BindingProbe(product, None, None, "; ".join(reasons))


def _import_apart(module: str, timeout_s: float) -> tuple[str | None, str]:
    """(version, "") when the module imports, else (None, the reason in one line)."""
    program = f"import {module} as bindings; print(getattr(bindings, '__version__', 'unknown'))"
    try:
        # The child inherits sys.path, or it would look elsewhere than find_spec did.
        child = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}"],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"import took longer than {timeout_s:g} s"
    if child.returncode == 0:
        return child.stdout.strip().splitlines()[-1], ""
    if child.returncode < 0:
        return None, f"import died of signal {-child.returncode}"
    lines = child.stderr.strip().splitlines()
    return None, lines[-1] if lines else f"import exited with status {child.returncode}"
