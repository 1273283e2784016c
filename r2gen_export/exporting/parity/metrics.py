"""How far two runs of one model are apart: tensors, distributions of the next token, token ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import ParityCheck
from r2gen_export.decoding import Decoding
from r2gen_export.precision import PRECISIONS
from r2gen_export.runtime.decoding.processors import log_softmax

Floats = NDArray[np.float32]

IMAGE_EMBEDS_TOLERANCE: Final = {"fp32": 1e-4, "fp16": 2e-2, "int8": 1e-1}
"""Max abs difference per unit of the largest value, by the vision encoder's precision. Swin-base in ONNX Runtime fp32
differs by 5e-6."""


def tensor_check(name: str, stage: str, found: Floats | None, wanted: Floats, tolerance: float) -> ParityCheck:
    """Compare arrays of one shape, rows first.

    Args:
        name, stage: of the check.
        found: what the bundle gave, None when it was not finite.
        wanted: what PyTorch gave.
        tolerance: allowed max abs difference, per unit of the largest wanted value (at least 1).

    Returns:
        `observed` is the max abs difference, infinite when shapes differ or a value is not finite. `metrics` adds
        `relative` (per largest value) and `cosine` (the least of any row).
    """
    scale = float(np.abs(wanted).max())
    limit = tolerance * max(1.0, scale)
    if found is None or found.shape != wanted.shape or not np.isfinite(found).all():
        return ParityCheck(name, False, float("inf"), limit, "NaN, infinity or another shape", stage)
    worst = float(np.abs(found - wanted).max())
    metrics = {"relative": worst / scale if scale else worst, "cosine": _cosine(found, wanted)}
    detail = f"max abs; relative {metrics['relative']:.1e}, 1 - cosine {1 - metrics['cosine']:.1e}"
    return ParityCheck(name, worst <= limit, worst, limit, detail, stage, metrics)


def _cosine(found: Floats, wanted: Floats) -> float:
    left, right = (one.reshape(len(one), -1).astype(np.float64) for one in (found, wanted))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / np.where(norms == 0, 1, norms)).min())


def distribution_metrics(found: Floats, wanted: Floats) -> dict[str, float]:
    """Next-token distributions of logits [..., vocab]: KL(wanted || found) in nats, mean and max; top-1 agreement."""
    left, right = (log_softmax(one.astype(np.float64)) for one in (found, wanted))
    divergence = (np.exp(right) * (right - left)).sum(axis=-1)
    agreement = (found.argmax(axis=-1) == wanted.argmax(axis=-1)).mean()
    return {"kl_mean": float(divergence.mean()), "kl_max": float(divergence.max()), "top1": float(agreement)}


def logits_check(
    name: str, stage: str, found: Floats | None, wanted: Floats, precisions: Sequence[str] = ("fp32",)
) -> ParityCheck:
    """`tensor_check` of logits [N, K, vocab], with `distribution_metrics`.

    `precisions`: of the layers the logits went through; the widest tolerance of theirs holds.
    """
    tolerance = max(PRECISIONS[precision].logits_tolerance for precision in precisions)
    check = tensor_check(name, stage, found, wanted, tolerance)
    if not check.metrics or found is None:
        return check
    more = distribution_metrics(found, wanted)
    count = int(np.prod(wanted.shape[:-1]))
    detail = f"{check.detail}; KL {more['kl_mean']:.1e}, top-1 {more['top1']:.1%} of {count}"
    return dataclasses.replace(check, detail=detail, metrics={**check.metrics, **more})


def rows_check(found: Floats, wanted: Floats) -> ParityCheck:
    """Embeddings [n, d] of the bundle's table against the source's, rounded alike: equal to the last bit."""
    worst = float(np.abs(found - wanted).max())
    detail = f"{len(wanted)} rows of the prompt, max abs"
    return ParityCheck("embed_tokens", worst == 0, worst, 0.0, detail, "prefill")


def quality_check(found: Floats | None, wanted: Floats) -> ParityCheck:
    """How far a reduced precision is from fp32, logits [N, K, vocab]; recorded, not a gate.

    `observed` is the mean KL in nats.
    """
    name = "next token, against fp32"
    if found is None or not np.isfinite(found).all():
        return ParityCheck(name, False, float("inf"), 0.0, "NaN or infinity", "decode")
    metrics = {**distribution_metrics(found, wanted), "positions": float(np.prod(wanted.shape[:-1]))}
    detail = (
        f"KL mean {metrics['kl_mean']:.2e}, max {metrics['kl_max']:.2e} nats; "
        f"top-1 {metrics['top1']:.1%} of {metrics['positions']:.0f} positions"
    )
    observed = metrics["kl_mean"]
    return ParityCheck(name, True, observed, observed, detail, "decode", metrics, gate=False)


def token_check(
    name: str,
    decoding: Decoding,
    found: Sequence[Sequence[int]] | None,
    wanted: Sequence[Sequence[int]],
    *,
    gate: bool = True,
) -> ParityCheck:
    """Compare token ids of studies; `observed` counts those that differ, the detail names the first place.

    `metrics`: `match`, the share of tokens that are equal at their place, and `first_divergence`, the earliest place
    at which a study differs (absent when none does). With `gate` false they are recorded only.
    """
    way = "greedy" if decoding.num_beams == 1 else f"beam {decoding.num_beams}"
    title = f"tokens, {name}"
    detail = f"{way}, {len(wanted)} studies, {sum(map(len, wanted))} tokens"
    if found is None:
        return ParityCheck(title, False, float(len(wanted)), 0.0, f"{detail}, NaN or infinity in the logits", "tokens")
    wrong = [row for row, ids in enumerate(wanted) if list(found[row]) != list(ids)]
    if wrong:
        one, two = found[wrong[0]], wanted[wrong[0]]
        step = next((at for at, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), None)
        detail += f", study {wrong[0] + 1} differs from token {min(len(one), len(two)) if step is None else step} on"
    metrics = _token_metrics(found, wanted)
    if not gate:
        detail += f"; {metrics['match']:.1%} of the tokens equal"
    tolerance = 0.0 if gate else float(len(wrong))
    return ParityCheck(title, not gate or not wrong, float(len(wrong)), tolerance, detail, "tokens", metrics, gate)


def _token_metrics(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> dict[str, float]:
    places, equal, total = [], 0, 0
    for one, two in zip(found, wanted, strict=True):
        same = [left == right for left, right in zip(one, two, strict=False)]
        equal, total = equal + sum(same), total + max(len(one), len(two))
        if list(one) != list(two):
            places.append(same.index(False) if False in same else len(same))
    metrics = {"match": equal / max(1, total)}
    return {**metrics, "first_divergence": float(min(places))} if places else metrics


def first_divergence(checks: Sequence[ParityCheck]) -> str:
    """The stage and the check in which the two runs part first, empty when they do not."""
    failed = next((check for check in checks if not check.passed), None)
    if failed is None:
        return ""
    return f"{failed.stage}: {failed.name}" if failed.stage else failed.name
