"""Two reports side by side: is B slower than A, by how much, and could it be chance?

A difference of a judged metric is called significant when three things hold: an exact permutation test over the
processes of both runs says so (all judged metrics together, by Holm's method, wrong once in 20 runs of the same
thing), its bootstrap interval leaves out 1, and it is larger than the noise: two standard errors from the scatter of
the processes, the change of the machine's own measured rates between the two runs, as large as it may have been, and
for times on a virtual machine 5 %, whichever is largest. Of several runs of each, made in turn, the pairs are judged,
and their scatter alone is the noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import exp, hypot, log
from statistics import median
from typing import Any, Final

from benchmarks.latency.metrics import METRICS
from benchmarks.latency.stability import FOREIGN, STOLEN, WAVERED
from benchmarks.latency.statistics import Difference, compare, compare_in_turn, holm, median_error
from r2gen_export.errors import R2GenError

COMPARE_SCHEMA: Final = "r2gen-bench-compare/1"

LEAST_EFFECT: Final = 0.01
"""Smaller differences are never called: they are of no use to anybody."""

LEAST_VIRTUAL: Final = 0.05
"""The same for times on a virtual machine, whose neighbours cannot be seen: demo runs differed by up to 4 % there."""

BY_STUDY: Final = frozenset(
    ("total", "ttft", "tpot", "preprocess", "encode", "prefill", "decode", "detokenize", "tokens", "per_pass", "cpu")
)
"""Metrics with one sample for each end-to-end sample: divided by the typical value of their study."""

ARITHMETIC: Final = "gemm_fp32_gops"
MEMORY: Final = "read_gb_s"
"""The machine's rates that times depend on; memory's only where the model does not fit into the caches."""


def compare_reports(a: dict[str, Any], b: dict[str, Any], *, force: bool = False) -> dict[str, Any]:
    """Compare two loaded reports.

    Args:
        a: the baseline.
        b: what is judged against it.
        force: compare although conditions differ.

    Returns:
        `differs` (conditions), `notes`, `drift` (of the machine), and for each configuration in both its metrics with
        `ratio` (B / A), `ci95`, `noise`, `p` and `verdict`.

    Raises:
        R2GenError: `R2G-BENCH-CONDITIONS` when conditions differ and `force` is false, or no configuration is in both;
            `R2G-BENCH-FORMAT`.
    """
    with whole():
        differs = conditions(a, b)
        if differs and not force:
            message = f"the two runs are not comparable: {'; '.join(differs)}"
            raise R2GenError("R2G-BENCH-CONDITIONS", message, "measure again under equal conditions, or --force")
        pairs = _pairs(a, b, force)
        in_turn = took_turns(a, b)
        # What the machine and its neighbours did in between hit both where runs were made in turn.
        drifts = [0.0 if in_turn else machine_drift(a["machine"], b["machine"], *pair) for pair in pairs]
        virtual = any(side["environment"]["virtual_machine"] for side in (a, b))
        least = LEAST_VIRTUAL if virtual and not in_turn else LEAST_EFFECT
        found = [_configuration(*pair, drift, least, in_turn) for pair, drift in zip(pairs, drifts, strict=True)]
        cores = a["environment"]["cores"]
        busy = [not force and any(was_busy(side, cores) for side in pair) for pair in pairs]
        _judge(found, busy)
        notes = version_changes(a, b)
        for name, side in (("A", a), ("B", b)):
            if len(side.get("commits", ())) > 1:
                notes.append(f"the runs of {name} were made at several commits: {', '.join(side['commits'])}")
    return {
        "schema": COMPARE_SCHEMA,
        "a": _label(a),
        "b": _label(b),
        "differs": differs,
        "forced": bool(differs),
        "notes": notes,
        "drift": max(one["drift"] for one in found),
        "configurations": found,
    }


def require_conditions(baseline: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a baseline before anything is measured. `expected`: what `conditions` reads, of the run to come.

    Raises:
        R2GenError: `R2G-BENCH-CONDITIONS`, `R2G-BENCH-FORMAT`.
    """
    with whole():
        differs = conditions(baseline, expected)
        _pairs(baseline, expected, force=False)
    if differs:
        message = f"the baseline is not comparable: {'; '.join(differs)}"
        fix = "measure without --baseline; r2gen bench compare --force compares all the same"
        raise R2GenError("R2G-BENCH-CONDITIONS", message, fix)


@contextmanager
def whole() -> Iterator[None]:
    """A field that is missing, or is not of its type, is the report's fault."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        message = f"a report lacks what it must have ({type(error).__name__}: {error})"
        raise R2GenError("R2G-BENCH-FORMAT", message, "measure again with r2gen bench") from error


def conditions(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What makes two runs incomparable, in words: host, bundle, precision, pictures, decoding of each configuration."""
    pairs: list[tuple[str, Any, Any]] = [
        ("host", _host(a["environment"]), _host(b["environment"])),
        ("bundle", a["bundle"]["id"], b["bundle"]["id"]),
        ("precision", _flat(a["bundle"]["precision"]), _flat(b["bundle"]["precision"])),
        ("pictures", a["settings"]["images_digest"], b["settings"]["images_digest"]),
        ("drafts", a["settings"]["draft"], b["settings"]["draft"]),
    ]
    others = {one["name"]: one for one in b["configurations"]}
    for one in a["configurations"]:
        if other := others.get(one["name"]):
            name = one["name"]
            pairs.append((f"decoding of {name}", _changes(one["decoding"], other["decoding"]), ""))
            pairs += [(f"{key} of {name}", one[key], other[key]) for key in ("semantics", "provider", "threads")]
    return [
        f"{name} ({left})" if name.startswith("decoding") else f"{name} ({left} against {right})"
        for name, left, right in pairs
        if left != right
    ]


def machine_drift(a: dict[str, Any], b: dict[str, Any], left: dict[str, Any], right: dict[str, Any]) -> float:
    """How much what the machine itself can do may have changed between the two runs, as a share.

    For each rate the ratio of the two medians and two standard errors of it: a machine that was measured to waver
    cannot have been seen to stay. The largest counts.

    Args:
        a: `machine` of one run.
        b: of the other.
        left: the configuration of one run, which says whether its model lies in the caches.
        right: the same of the other.
    """
    cached = all((one["roofline"].get("decode") or {}).get("in_cache") for one in (left, right))
    found = []
    for name in (ARITHMETIC,) if cached else (ARITHMETIC, MEMORY):
        sides = [[one[name] for one in side["moments"]] for side in (a, b)]
        change = abs(log(median(sides[1]) / median(sides[0])))
        found.append(exp(change + 2 * hypot(*(median_error(side) for side in sides))) - 1)
    return max(found)


def took_turns(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether A and B are several runs each that were made in turn: each pair before the next one began.

    Raises:
        R2GenError: `R2G-BENCH-CONDITIONS` when they are several runs and were not: nothing would cancel.
    """
    turns = [side.get("turns", [side["created"]]) for side in (a, b)]
    if len(turns[0]) == len(turns[1]) == 1:
        return False
    pairs = list(zip(*turns, strict=False))
    if len(turns[0]) != len(turns[1]) or any(max(one) > min(after) for one, after in pairwise(pairs)):
        message = f"{len(turns[0])} runs of A and {len(turns[1])} of B, which were not made in turn"
        fix = "measure A, B, A, B ... and keep as many reports of each; or compare one report with one"
        raise R2GenError("R2G-BENCH-CONDITIONS", message, fix)
    return True


def slower_than(comparison: dict[str, Any], allowed: float) -> list[str]:
    """Judged metrics that are significantly worse by more than `allowed` (a share), in words."""
    return [
        f"{one['name']}: {METRICS[metric['name']].title} {metric['worse']:+.1%}"
        for one in comparison["configurations"]
        for metric in one["metrics"]
        if metric["verdict"] == "worse" and metric["worse"] > allowed
    ]


def unjudged(comparison: dict[str, Any]) -> list[str]:
    """Judged metrics without a verdict, in words: a gate must not take them for passed."""
    return [
        f"{one['name']}: {METRICS[metric['name']].title}: {metric['verdict']}"
        for one in comparison["configurations"]
        for metric in one["metrics"]
        if metric["verdict"] in ("machine was busy", "too few processes")
    ]


def _pairs(a: dict[str, Any], b: dict[str, Any], force: bool) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    others = {one["name"]: one for one in b["configurations"]}
    pairs = [(one, others[one["name"]]) for one in a["configurations"] if one["name"] in others]
    if not pairs and force and len(a["configurations"]) == len(b["configurations"]):
        pairs = list(zip(a["configurations"], b["configurations"], strict=True))
    if not pairs:
        names = [", ".join(repr(one["name"]) for one in side["configurations"]) for side in (a, b)]
        message = f"no configuration is in both runs ({names[0]} against {names[1]})"
        raise R2GenError("R2G-BENCH-CONDITIONS", message, "measure the same devices, presets, batches; or --force")
    return pairs


def _configuration(a: dict[str, Any], b: dict[str, Any], drift: float, least: float, in_turn: bool) -> dict[str, Any]:
    metrics = []
    for name, metric in METRICS.items():
        sides = _comparable(name, a, b, in_turn)
        if sides is None:
            if in_turn and metric.judged and any(name in one["metrics"] for one in (a, b)):
                message = f"{a['name']}: no two runs made in turn have both a {metric.title}"
                raise R2GenError("R2G-BENCH-CONDITIONS", message, "measure both again, in turn")
            continue
        found = (compare_in_turn if in_turn else compare)(*sides, test=metric.judged)
        timed = metric.unit in ("ms", "1/s")
        metrics.append(
            {
                "name": name,
                "title": metric.title,
                "unit": metric.unit,
                "a": a["metrics"][name]["p50"],
                "b": b["metrics"][name]["p50"],
                "ratio": found.ratio,
                "ci95": [found.low, found.high],
                "noise": max(found.noise, *((drift, least) if timed else (LEAST_EFFECT,))),
                "p": found.p,
                "least_p": found.least_p,
                "worse": worse_by(found, metric.better),
                "judged": metric.judged,
                "verdict": "",
            }
        )
    name = a["name"] if a["name"] == b["name"] else f"{a['name']} -> {b['name']}"
    return {"name": name, "words": _same_words(a, b), "drift": drift, "metrics": metrics}


def worse_by(found: Difference, better: str) -> float:
    """How much worse B is than A as a share: 0.1 where it takes 1.1 times the time; negative where it is better."""
    if better == "neither":
        return 0.0
    return found.ratio - 1 if better == "lower" else 1 / found.ratio - 1


def _comparable(
    name: str, a: dict[str, Any], b: dict[str, Any], in_turn: bool
) -> tuple[list[list[float]], list[list[float]]] | None:
    """Samples of a metric in both runs (in turn: in both runs of a pair), all positive; None where one has none, or
    where there is nothing to divide.
    """
    if name not in a["samples"] or name not in b["samples"]:
        return None
    sides = [one["samples"][name] for one in (a, b)]
    if name in BY_STUDY and all(
        [len(x) for x in side] == [len(x) for x in one["sample_studies"]]
        for side, one in zip(sides, (a, b), strict=True)
    ):
        sides = by_study(sides, [a["sample_studies"], b["sample_studies"]])
    if any(not value > 0 for side in sides for cluster in side for value in cluster):
        return None
    filled = [[bool(cluster) for cluster in side] for side in sides]
    if not (any(map(all, zip(*filled, strict=True))) if in_turn else all(map(any, filled))):
        return None
    return sides[0], sides[1]


def by_study(
    sides: Sequence[Sequence[Sequence[float]]], studies: Sequence[Sequence[Sequence[str]]]
) -> list[list[list[float]]]:
    """Every sample divided by the median of its study over both runs, which leaves their ratio as it is."""
    values: dict[str, list[float]] = {}
    for side, names in zip(sides, studies, strict=True):
        for cluster, keys in zip(side, names, strict=True):
            for value, key in zip(cluster, keys, strict=True):
                values.setdefault(key, []).append(value)
    typical = {key: median(found) or 1.0 for key, found in values.items()}
    return [
        [
            [value / typical[key] for value, key in zip(cluster, keys, strict=True)]
            for cluster, keys in zip(side, names, strict=True)
        ]
        for side, names in zip(sides, studies, strict=True)
    ]


def was_busy(configuration: dict[str, Any], cores: int) -> bool:
    """Whether so much else ran on the machine that times say more about that than about r2gen."""
    found = configuration["steadiness"]
    taken = (found["foreign_cores"] or 0) > FOREIGN * cores or (found["stolen_cores"] or 0) > STOLEN * cores
    return taken or found.get("gemm_spread", 1.0) > WAVERED  # reports of before have none


def _judge(configurations: Sequence[dict[str, Any]], busy: Sequence[bool]) -> None:
    """Verdicts of all judged metrics together; none on times where the machine was `busy` in either run."""
    timed = [
        one
        for found, loaded in zip(configurations, busy, strict=True)
        for one in found["metrics"]
        if loaded and one["judged"] and one["unit"] == "ms"
    ]
    judged = [one for found in configurations for one in found["metrics"] if one["judged"]]
    falls = holm([1.0 if one["p"] is None else one["p"] for one in judged])
    for one, fallen in zip(judged, falls, strict=True):
        low, high = one["ci95"]
        larger = max(one["ratio"], 1 / one["ratio"]) - 1 > one["noise"]
        if any(one is other for other in timed):
            one["verdict"] = "machine was busy"
        elif one["least_p"] > 0.05 / len(judged):
            one["verdict"] = "too few processes"
        elif fallen and larger and not low <= 1 <= high:
            one["verdict"] = "worse" if one["worse"] > 0 else "better"
        else:
            one["verdict"] = "no significant difference"


def _same_words(a: dict[str, Any], b: dict[str, Any]) -> dict[str, int]:
    """Studies in both runs, and those of them with the same token ids."""
    both = a["words"].keys() & b["words"].keys()
    return {"studies": len(both), "same": sum(a["words"][key] == b["words"][key] for key in both)}


def version_changes(a: dict[str, Any], b: dict[str, Any], *, commits: bool = True) -> list[str]:
    """Release, versions and, with `commits`, commit that differ: often the reason for comparing."""
    named = ("python", "r2gen", "git") if commits else ("python", "r2gen")
    versions, others = (
        {**found["packages"], **{name: found[name] for name in named}} for found in (a["environment"], b["environment"])
    )
    return [
        f"{name}: {versions.get(name)} against {others.get(name)}"
        for name in sorted(versions.keys() | others.keys())
        if versions.get(name) != others.get(name)
    ]


def _label(report: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in ("created", "command")} | {
        "bundle": report["bundle"]["id"],
        "runs": report.get("runs", 1),
    }


def _host(found: dict[str, Any]) -> str:
    gpu = found["gpu_name"] or "no GPU"
    return f"{found['cpu']}, {found['cores']} cores, {found['memory_gb']} GB, {gpu}, {found['host']}"


def _flat(precision: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(precision.items()))


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {a.get(key)} against {b.get(key)}" for key in a if a.get(key) != b.get(key))
