"""Rotary embeddings (RoPE) as a config.json states them, in the words of transformers 4 and 5, and their frequencies.

Transformers 4: `rope_theta` and `rope_scaling`. Transformers 5: `rope_parameters`, which holds both. The formulas
follow transformers 4.57 `modeling_rope_utils.py`, in numpy, so that what the loaded model uses can be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.errors import R2GenError
from r2gen_export.training.source_files.fields import Fields, shown

THETA: Final = 10_000.0
"""Base period where a config.json says none: the one of LLaMA 1 and 2, whose files lack the field."""

KINDS: Final = ("default", "linear", "llama3", "yarn")

LLAMA3: Final = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
NUMBERS: Final = {
    "default": (),
    "linear": ("factor",),
    "llama3": LLAMA3,
    "yarn": ("factor",),
}
"""Fields each kind needs."""

OPTIONAL: Final = {
    "yarn": (
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}

KNOWN: Final = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


@dataclass(frozen=True)
class Rope:
    """`kind` is one of `KINDS`, `theta` the base period, `values` the kind's other fields by their names."""

    kind: str = "default"
    theta: float = THETA
    values: dict[str, Any] = field(default_factory=dict)

    def rope_scaling(self) -> dict[str, Any] | None:
        """The field of transformers 4; None for the kind `default`."""
        return None if self.kind == "default" else {"rope_type": self.kind, **self.values}

    def frequencies(self, head_dim: int, max_positions: int) -> tuple[NDArray[np.float64], float]:
        """Inverse frequencies [head_dim / 2] in radians per position, and the factor of cosine and sine."""
        powers = self.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
        plain: NDArray[np.float64] = 1.0 / powers
        if self.kind == "linear":
            return plain / self.values["factor"], 1.0
        if self.kind == "llama3":
            return _llama3(plain, self.values), 1.0
        if self.kind == "yarn":
            return _yarn(plain, self.theta, max_positions, self.values), _yarn_attention(self.values)
        return plain, 1.0


def read_rope(config: Fields) -> Rope:
    """RoPE of a LLaMA.

    Args:
        config: of config.json.

    Raises:
        R2GenError: `R2G-MODEL-UNSUPPORTED` for a kind whose frequencies change with the length, for values that are
            none, and where the words of the two releases contradict each other.
    """
    theta = config.number("rope_theta", None, above=1.0)
    old = _scaling(config, "rope_scaling", theta) if "rope_scaling" in config else None
    new = _scaling(config, "rope_parameters", theta) if "rope_parameters" in config else None
    if old and new and (old != new):
        message = (
            f"{config.file} of {config.owner}: rope_scaling is {shown(config.values['rope_scaling'])}, but "
            f"rope_parameters is {shown(config.values['rope_parameters'])}"
        )
        raise R2GenError("R2G-MODEL-UNSUPPORTED", message, "leave the field that the model was trained with")
    return new or old or Rope(theta=THETA if theta is None else theta)


def _scaling(config: Fields, name: str, outer: float | None) -> Rope:
    inner = config.inner(name)
    names = {key: inner.values[key] for key in ("rope_type", "type") if inner.values.get(key) is not None}
    if len({shown(value) for value in names.values()}) > 1:
        raise inner.refusal("type", f"the same as rope_type, {shown(names['rope_type'])}")
    kind_name = next(iter(names), "rope_type")
    kind = names.get(kind_name, "default" if name == "rope_parameters" else None)
    if kind not in KINDS:
        raise inner.refusal(kind_name, f"one of {', '.join(KINDS)}", "use a model with one of these rotary embeddings")
    theta = inner.number("rope_theta", None, above=1.0)
    if theta is not None and outer is not None and theta != outer:
        raise inner.refusal("rope_theta", f"{outer:g}, as rope_theta beside it says")
    inner.require_neutral({"partial_rotary_factor": (1.0,)}, "use a model that rotates whole heads")
    base = theta if theta is not None else outer
    return Rope(kind, THETA if base is None else base, _values(inner, kind))


def _values(inner: Fields, kind: str) -> dict[str, Any]:
    """The fields of a kind, typed; unknown ones are refused."""
    allowed = {*NUMBERS[kind], *OPTIONAL.get(kind, ())}
    given = {name for name, value in inner.values.items() if value is not None}
    for stranger in sorted(given - allowed - KNOWN):
        raise inner.refusal(stranger, f"no such field in a rotary embedding of kind {kind}")
    values: dict[str, Any] = {}
    for name in (*NUMBERS[kind], *(name for name in OPTIONAL.get(kind, ()) if name in given)):
        if name == "truncate":
            values[name] = inner.flag(name)
        elif name == "original_max_position_embeddings":
            values[name] = inner.integer(name)
        else:
            values[name] = inner.number(name)
    if values.get("factor", 1.0) < 1.0:
        raise inner.refusal("factor", "at least 1")
    if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise inner.refusal("high_freq_factor", f"more than low_freq_factor, {values['low_freq_factor']:g}")
    return values


def _llama3(plain: NDArray[np.float64], values: dict[str, Any]) -> NDArray[np.float64]:
    factor, low, high, old = (float(values[name]) for name in LLAMA3)
    waves = 2 * math.pi / plain
    smooth = (old / waves - low) / (high - low)
    between = (1 - smooth) * plain / factor + smooth * plain
    return np.where(waves > old / low, plain / factor, np.where(waves < old / high, plain, between))


def _yarn(plain: NDArray[np.float64], theta: float, max_positions: int, values: dict[str, Any]) -> NDArray[np.float64]:
    dim = 2 * len(plain)
    old = values.get("original_max_position_embeddings") or max_positions

    def corrected(rotations: float) -> float:
        return dim * math.log(old / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = corrected(values.get("beta_fast", 32.0)), corrected(values.get("beta_slow", 1.0))
    if values.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = np.clip((np.arange(dim // 2) - low) / ((high - low) or 0.001), 0, 1)
    return plain / values["factor"] * ramp + plain * (1 - ramp)


def _yarn_attention(values: dict[str, Any]) -> float:
    if "attention_factor" in values:
        return float(values["attention_factor"])

    def scale(mscale: float) -> float:
        return 1.0 if values["factor"] <= 1 else 0.1 * mscale * math.log(values["factor"]) + 1.0

    if "mscale" in values and "mscale_all_dim" in values:
        return scale(values["mscale"]) / scale(values["mscale_all_dim"])
    return scale(1.0)
