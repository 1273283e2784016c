"""What the GPU check runs, in which order, and how long each step may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from r2gen_export.precision import PRECISIONS

FAST: Final = ("int4-f16", "fp16", "int8-f16", "int4-128-f16")
"""Precisions with float16 activations, which CUDA runs wholly; the most telling first."""

REST: Final = tuple(name for name in PRECISIONS if name not in FAST)

BUNDLES: Final = (
    *(f"{dialect}-{precision}" for precision in FAST for dialect in ("ort", "trt")),
    "standard-fp32",
    *(f"{dialect}-{precision}" for dialect in ("trt", "ort") for precision in REST),
)
"""Every dialect in every precision it can be exported in, as `DIALECT-PRECISION`."""

REFUSED: Final = tuple(f"ort-{precision}" for precision in REST)
"""Bundles r2gen refuses on CUDA, where their attention has no kernel: they have a placement, and no parity."""

SHAPES: Final = (
    *("llama-2-7b-ort-int4-f16", "llama-2-7b-ort-fp16", "llama-2-7b-trt-int4-f16", "llama-2-7b-trt-fp16"),
    *("tinyllama-1.1b-ort-int4-f16", "tinyllama-1.1b-ort-fp16", "tinyllama-1.1b-trt-int4-f16"),
    *("llama-2-7b-ort-int8-f16", "tinyllama-1.1b-trt-fp16"),
)
"""Decoders of known shapes that are timed, as `SHAPE-DIALECT-PRECISION`."""

TINY_SHAPES: Final = ("tiny-ort-int4-f16", "tiny-ort-fp16", "tiny-trt-int4-f16")
VISION: Final = ("swin-base-fp16", "swin-base-fp32")


@dataclass(frozen=True)
class Step:
    """One step: a function of `steps`, its argument, and the seconds after which it is ended."""

    name: str
    argument: str = ""
    seconds: int = 60

    @property
    def key(self) -> str:
        """As results are named: `parity ort-fp16`."""
        return f"{self.name} {self.argument}".strip()


def _first() -> tuple[Step, ...]:
    """Steps on small bundles and on the machine."""
    return (
        Step("ceilings"),
        Step("providers"),
        Step("binding", seconds=40),
        *(Step("placement", name) for name in BUNDLES[:5]),
        *(Step("parity", name, 90) for name in BUNDLES if name.endswith(FAST[:2]) or name == "trt-fp32"),
        Step("engine_memory", seconds=40),
        Step("command_line", seconds=90),
    )


def _last() -> tuple[Step, ...]:
    """Bundles that say little new."""
    return (
        *(Step("placement", name) for name in BUNDLES[5:]),
        *(Step("parity", name, 90) for name in BUNDLES if name not in REFUSED),
    )


def _timings(shape: str) -> tuple[Step, ...]:
    """PyTorch on a shape, then every decoder of it."""
    return (
        Step("reference", shape, 120),
        *(Step("shape", name, 180) for name in SHAPES if name.startswith(shape)),
    )


def _unique(*steps: Step) -> tuple[Step, ...]:
    return tuple({step.key: step for step in steps}.values())


FULL: Final = _unique(
    *_first(),
    *_timings("llama-2-7b"),
    Step("vision", VISION[0]),
    *_timings("tinyllama-1.1b"),
    *_last(),
    Step("vision", VISION[1]),
)
"""On a GPU: the most telling first, because time may run out."""

WITHOUT_GPU: Final = _unique(
    *_first(),
    *_last(),
    Step("reference", "tiny", 120),
    *(Step("shape", name, 120) for name in TINY_SHAPES),
    Step("vision", VISION[0], 300),
)
"""To try the check where there is no GPU."""


def recipes_of(steps: tuple[Step, ...]) -> list[str]:
    """Recipes that steps need, in their order."""
    return [step.argument for step in steps if step.name in ("shape", "vision")]


def bundles_of(steps: tuple[Step, ...]) -> list[str]:
    """Bundles that steps need, in their order."""
    return list(dict.fromkeys(step.argument for step in steps if step.name in ("placement", "parity")))
