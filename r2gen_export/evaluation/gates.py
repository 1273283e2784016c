"""Non-inferiority: whether a system was shown to be worse by no more than a margin, with 95 % confidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.bootstrap import FEWEST, Resampling

GATES: Final = {
    **{f"bleu{size}": f"BLEU-{size}" for size in (1, 2, 3, 4)},
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "f1": "F1-micro-14-u1",
    "labels": "labels",
}
"""Names in `--fail-below`, and what each is a margin of."""


def parse_margins(text: str) -> dict[str, float]:
    """Read `bleu4=0.005,labels=1%`: by how much the second system may be worse.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    margins: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            margin = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            margin = -1.0
        if name not in GATES or name in margins or not 0 <= margin < float("inf"):
            fix = f"give NAME=MARGIN with a name of {', '.join(GATES)}, once each, and a margin from 0"
            raise R2GenError("R2G-CONFIG-VALUE", "--fail-below has a part that is no margin", fix)
        margins[name] = margin
    return margins


def judge(name: str, margin: float, bound: float | None) -> dict[str, Any]:
    """Whether the second system is worse by at most `margin`; `bound` None: there are too few studies to tell."""
    why = f"fewer than {FEWEST} studies" if bound is None else ""
    passed = bound is not None and bound <= margin
    return {"name": name, "metric": GATES[name], "margin": margin, "bound": bound, "passed": passed, "why": why}


def difference_bound(differences: NDArray[np.float64]) -> float:
    """By how much a metric is worse at most, from its differences, second minus first, on each resample."""
    return max(0.0, -float(np.percentile(differences, 5)))


def flip_bound(flips: NDArray[np.bool_], plan: Resampling) -> float:
    """Upper 95 % bound of the share of findings [N, 13] that flip.

    No flip among n studies still allows a share of 1 - 0.05 ** (1 / n) of studies with one, of 13 findings each.
    """
    counts = np.stack([flips.sum(axis=1), np.full(len(flips), flips.shape[1])], axis=1).astype(np.float64)
    sums = plan.grouped(counts)
    shares = [(part := weights @ sums)[:, 0] / part[:, 1] for weights in plan.weights()]
    unseen = float((1 - 0.05 ** (1 / plan.units)) / flips.shape[1])
    return max(float(np.percentile(np.concatenate(shares), 95)), unseen)


def bound_text(gate: Mapping[str, Any]) -> str:
    """What a bound says: of a metric how much worse, of labels how many flips, the second system may have."""
    if gate["metric"] == "labels":
        return f"up to {gate['bound']:.2%} of all findings may flip"
    return f"may be worse by up to {gate['bound']:.4f}"


def refuse_worse(comparison: Mapping[str, Any]) -> None:
    """Raise when a gate was not passed.

    Raises:
        R2GenError: `R2G-EVAL-WORSE` (exit status 3).
    """
    failed = [gate for gate in comparison["gates"] if not gate["passed"]]
    if failed:
        parts = [
            f"{gate['metric']}: {gate['why']}"
            if gate["bound"] is None
            else f"{gate['metric']}: {bound_text(gate)}, allowed {gate['margin']:g}"
            for gate in failed
        ]
        fix = "look at the differences above; more studies narrow the bounds"
        raise R2GenError("R2G-EVAL-WORSE", f"not shown to be as good: {'; '.join(parts)}", fix)
