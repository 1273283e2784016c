"""The one switch between TensorRT and TensorRT-RTX: which module is `trt`, and why one is not usable here.

Everything else in this package is written to the subset of the Python API the two share (TensorRT 10.15+ and 11,
TensorRT-RTX 1.4+) and takes the module from a `Backend`.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.system.gpu import gpu
from trt_engines.probe import BINDINGS, INSTALL, why_absent

if TYPE_CHECKING:
    # Made from the real bindings by tests/trt_engines/stubs.py, for a type check of its own; without them it is Any.
    from tensorrt_stubs import TensorRT

PRODUCTS: Final[dict[str, str]] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
"""Names of `--backend`, best first, and what the product is called."""

CHOICES: Final = ("auto", *PRODUCTS)

OLDEST: Final[dict[str, tuple[int, int]]] = {"tensorrt": (10, 15), "tensorrt-rtx": (1, 4)}
"""First versions with all of the API used here: `get_aliased_input_tensor` came with the cache written in place."""


@dataclass(frozen=True)
class Backend:
    """A backend that imports. `name`: a key of `PRODUCTS`; `trt`: its Python module; `version`: as it says itself."""

    name: str
    trt: TensorRT
    version: str

    @property
    def product(self) -> str:
        """What NVIDIA calls it."""
        return PRODUCTS[self.name]

    @property
    def builds_without_gpu(self) -> bool:
        """TensorRT-RTX compiles for compute capabilities it is given; TensorRT times kernels on the GPU at hand."""
        return self.name == "tensorrt-rtx"


def load_backend(name: str = "auto") -> Backend:
    """Import a backend.

    Args:
        name: `tensorrt`, `tensorrt-rtx`, or `auto`: TensorRT where it imports and there is a GPU, else TensorRT-RTX.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for another name; `R2G-ENGINE-BACKEND`, saying of each candidate why it is not
            usable.
    """
    if name not in CHOICES:
        raise R2GenError("R2G-CONFIG-VALUE", f"backend {name!r} is unknown", f"choose one of {', '.join(CHOICES)}")
    reasons = {}
    for candidate in PRODUCTS if name == "auto" else (name,):
        reason = "it builds and runs on a GPU only, and the driver shows none" if _lacks_gpu(name, candidate) else ""
        found = None if reason else _import(candidate)
        if isinstance(found, Backend):
            return found
        reasons[candidate] = found or reason
    said = "; ".join(f"{PRODUCTS[candidate]}: {reason}" for candidate, reason in reasons.items())
    # Without a GPU only the last one could be used, with one either could.
    raise R2GenError(
        "R2G-ENGINE-BACKEND", f"no backend for engines: {said}", INSTALL[PRODUCTS[next(reversed(reasons))]]
    )


def _lacks_gpu(asked: str, candidate: str) -> bool:
    return asked == "auto" and candidate == "tensorrt" and gpu() is None


def _import(name: str) -> Backend | str:
    """The backend, or the reason it is not usable."""
    installed = [module for module in BINDINGS[PRODUCTS[name]] if importlib.util.find_spec(module) is not None]
    if not installed:
        return why_absent(PRODUCTS[name])
    reasons = []
    for module in installed:
        try:
            trt: Any = importlib.import_module(module)
        except (ImportError, OSError, AttributeError, RuntimeError) as error:
            reasons.append(f"{module} does not import ({str(error).partition(chr(10))[0]})")
            continue
        version = str(getattr(trt, "__version__", "0"))
        if version_numbers(version)[:2] >= OLDEST[name]:
            return Backend(name, trt, version)
        oldest = ".".join(map(str, OLDEST[name]))
        reasons.append(f"version {version} found, {oldest} or newer needed")
    return "; ".join(reasons)


def version_numbers(version: str) -> tuple[int, ...]:
    """`1.7.1.116` as numbers; what follows the first part that is none is left out."""
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)
