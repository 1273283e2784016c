"""The answers of the steps as a short report in Markdown, and the JSON of the placement alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from benchmarks.gpu.measure import COPIES

Results = dict[str, Any]

TIMES: Final = (
    *("prefill_ms", "decode_ms", "gb_s", "extend9_ms", "beam3_decode_ms", "beam3_reorder_ms"),
    *("greedy_loop_ms_per_token", "beam3_loop_ms_per_token"),
)


def placement_json(results: Results) -> dict[str, Any]:
    """What `--json` writes: `binding`, and `bundles` with the fields of `measure` for every bundle.

    A bundle that could not be measured has `refused` with the reason and null for every number.
    """
    bundles = {}
    for key, answer in results.items():
        if not key.startswith("placement "):
            continue
        name = key.removeprefix("placement ")
        dialect, _, precision = name.partition("-")
        fields: dict[str, Any] = {"dialect": dialect, "precision": precision, "cpu_nodes": [], "cpu_node_count": None}
        fields |= {"memcpy_nodes": None, **dict.fromkeys(COPIES), "refused": None} | answer
        fields["refused"] = fields["refused"] or fields.pop("skipped", None) or fields.pop("failed", None)
        fields.pop("seconds", None)
        bundles[name] = fields
    binding = {name: value for name, value in results.get("binding", {}).items() if name != "seconds"}
    return {"binding": binding, "bundles": bundles}


def render(results: Results) -> str:
    """The report: machine, placement, parity, times, and what else the steps said."""
    parts = [_machine(results.get("ceilings", {})), *_placements(results), *_parities(results), *_times(results)]
    return "\n".join([*parts, *_others(results)]) + "\n"


def _row(*cells: object) -> str:
    return (
        "| "
        + " | ".join("" if cell is None else " ".join(str(cell).split()).replace("|", "/") for cell in cells)
        + " |"
    )


def _head(*names: str) -> str:
    return f"\n{_row(*names)}\n{'|---' * len(names)}|"


def _of(results: Results, step: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Argument and answer of every run of a step."""
    for key, answer in results.items():
        if key.startswith(f"{step} "):
            yield key.removeprefix(f"{step} "), answer


def _problem(answer: dict[str, Any]) -> str:
    """Why there are no numbers."""
    return str(next((answer[name] for name in ("failed", "skipped", "error") if answer.get(name)), ""))[:160]


def _machine(ceilings: dict[str, Any]) -> str:
    if "copy_gb_s" not in ceilings:
        return f"Machine: {_problem(ceilings) or 'not measured'}"
    return (
        f"{ceilings.get('gpu', 'CPU')}; copy {ceilings['copy_gb_s']} GB/s, read {ceilings['read_gb_s']} GB/s, "
        f"host to device {ceilings['pageable_h2d_gb_s']} GB/s, fp16 {ceilings.get('fp16_tflops', '-')} TFLOP/s"
    )


def _placements(results: Results) -> Iterator[str]:
    rows = list(_of(results, "placement"))
    if not rows:
        return
    yield _head(
        "bundle", "nodes on the CPU", "Memcpy nodes", "bytes up a step", "bytes down a step",
        "cache copies: step", "reorder", "rollback", "refused or failed",
    )  # fmt: skip
    for name, answer in rows:
        places = answer.get("cpu_nodes", [])
        shown = ", ".join(places[:3]) + (", ..." if len(places) > 3 else "")
        yield _row(
            name,
            f"{answer['cpu_node_count']} {shown}" if places else answer.get("cpu_node_count"),
            *(answer.get(field) for field in ("memcpy_nodes", "bytes_up_per_step", "bytes_down_per_step")),
            *(answer.get(f"cache_copies_per_{field}") for field in ("step", "reorder", "rollback")),
            answer.get("refused") or _problem(answer),
        )


def _parities(results: Results) -> Iterator[str]:
    rows = list(_of(results, "parity"))
    if not rows:
        return
    yield _head(
        "bundle",
        "worst relative, plain",
        "accelerated",
        "int4_gemm",
        "greedy equal",
        "beam 3 equal",
        "provider",
        "error",
    )
    for name, answer in rows:
        walks = [answer.get("walk", {}).get(kind, {}) for kind in ("plain", "accelerated", "int4_gemm")]
        errors = [_problem(answer), *(_problem(walk) for walk in walks)]
        yield _row(
            name,
            *(walk.get("worst") for walk in walks),
            *("{equal} of {of}".format(**answer[kind]) if kind in answer else "" for kind in ("greedy", "beam3")),
            answer.get("device_provider"),
            next(filter(None, errors), ""),
        )


def _times(results: Results) -> Iterator[str]:
    """A row for each decoder and acceleration. `x floor`: times the duration of reading the weights once."""
    rows = list(_of(results, "shape"))
    if not rows:
        return
    ceilings = results.get("ceilings", {})
    speed = max(ceilings.get("read_gb_s", 0), ceilings.get("copy_gb_s", 0))
    yield _head("decoder", "acceleration", "GB a token", *TIMES, "x floor", "relative to torch", "top-1", "error")
    for name, answer in rows:
        for variant, times in (answer.get("variants") or {"": {}}).items():
            compared = times.get("against_torch", {})
            yield _row(
                name,
                variant,
                answer.get("read_gb"),
                *(round(times[field], 3) if field in times else "" for field in TIMES),
                round(speed / times["gb_s"], 2) if times.get("gb_s") and speed else "",
                compared.get("relative"),
                compared.get("top1"),
                _problem(times) or _problem(answer),
            )


def _others(results: Results) -> Iterator[str]:
    """One line for each other step."""
    yield ""
    for key, answer in results.items():
        name = key.partition(" ")[0]
        if name in ("reference", "vision", "engine_memory", "command_line", "providers", "binding"):
            shown = {field: value for field, value in answer.items() if field not in ("doctor", "libraries")}
            if name == "command_line":
                shown = {"equal": answer.get("equal"), "problem": _problem(answer)}
            yield f"- {key}: {json.dumps(shown)[:700]}"
