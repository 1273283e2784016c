"""Microbenchmarks of the hot steps, and how they grow: `python -m benchmarks.suite [--out FILE]`.

Steps of the loop (processors, n-gram lookup, pictures), encoder, and the decoder by prompt length, position, beams,
batch and model width. Models have random weights, the encoder is the demo bundle's. Needs the extra `export`, takes two
minutes or so, and writes its result with the conditions beside it. Nothing of it is timed in CI.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Final

import numpy as np

from benchmarks.latency.environment import environment
from benchmarks.latency.figures import number
from benchmarks.latency.markdown import table
from benchmarks.latency.trackers import processor_seconds
from benchmarks.machine_rates import Machine, measure_rates
from benchmarks.suite.models import SuiteModel, open_model
from r2gen_export import bundle as layout
from r2gen_export.bundle import demo_bundle, load_manifest
from r2gen_export.decoding import Decoding
from r2gen_export.runtime.backends.ort_providers import CPU
from r2gen_export.runtime.backends.ort_vision import VisionSession
from r2gen_export.runtime.decoding.processors import log_softmax, make_processors
from r2gen_export.runtime.drafting.drafter import Drafter
from r2gen_export.runtime.drafting.ngrams import SortedNgrams
from r2gen_export.studies.images import preprocess
from r2gen_export.system.cores import available_cores

WIDTHS: Final = (256, 512, 1024)
VOCAB: Final = 32_000
PROMPT: Final = 128
SECONDS: Final = 0.4
"""Time spent on each line, at least."""

LEAST: Final = 9
"""Samples of each line, at least."""

Step = tuple[str, str, Callable[[], object]]
"""Group, what varies, and the call that is timed."""


@dataclass(frozen=True)
class StepTimes:
    """One line: milliseconds of `n` calls after two to warm up."""

    group: str
    name: str
    n: int
    p10: float
    p50: float
    p90: float


def time_step(step: Step, seconds: float = SECONDS) -> StepTimes:
    """Call until `seconds` are over and there are `LEAST` samples."""
    group, name, call = step
    call()
    call()
    samples: list[float] = []
    while len(samples) < LEAST or sum(samples) < seconds * 1000:
        started = perf_counter()
        call()
        samples.append((perf_counter() - started) * 1000)
    low, middle, high = np.percentile(samples, [10, 50, 90]).tolist()
    return StepTimes(group, name, len(samples), low, middle, high)


def loop_steps() -> Iterator[Step]:
    """What the decode loop does beside the model, at LLaMA's vocabulary, and reading pictures."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(3, VOCAB)).astype(np.float32)
    for count in (20, 100):
        tokens = rng.integers(3, VOCAB, (3, count))
        for name, decoding in (
            ("repetition penalty, minimum length", Decoding(repetition_penalty=2.0)),
            ("no repeated 3-gram", Decoding(repetition_penalty=1.0, min_new_tokens=0, no_repeat_ngram_size=3)),
        ):
            process = make_processors(decoding, 2)
            yield "logits, 3 rows", f"{name}, {count} tokens", partial(process, tokens, scores)
    yield "logits, 3 rows", "log softmax", lambda: log_softmax(scores)
    for reports in (100, 1000, 10_000):
        store = rng.zipf(1.3, (reports, 60)) % 5000
        drafter = Drafter([SortedNgrams.build(store.tolist())], vocab_size=VOCAB)
        context = store[reports // 2, :30].tolist()
        yield "draft proposal", f"store of {reports} reports", partial(drafter.propose, context, 8)
    spec = load_manifest(demo_bundle()).image
    for side in (512, 1024, 2048):
        picture = rng.integers(0, 255, (side, side, 3), dtype=np.uint8)
        yield "preprocess", f"{side} x {side} pixels", partial(preprocess, [picture], spec)
    vision = VisionSession(demo_bundle() / layout.VISION, providers=[CPU])
    for views in (1, 2, 4):
        pixels = rng.normal(size=(views, 3, spec.height, spec.width)).astype(np.float32)
        yield "encode, demo bundle", f"{views} views", partial(vision.encode, pixels)


def model_steps(model: SuiteModel) -> Iterator[Step]:
    """How one decoder grows: prompt, position, verified drafts, beams, batch."""
    name = f"width {model.width}, {model.layers} layers, int4"
    for length in (32, 128, 512):
        yield f"prefill, {name}", f"{length} positions", partial(model.prefill, length)
    for position in (64, 256, 960):
        yield f"decode, {name}", f"position {position}", model.decoder_at(position)
    for drafts in (2, 4, 8):
        yield f"verify, {name}", f"{drafts} drafts and a token", model.verifier(drafts, PROMPT)
    for rows in (2, 4, 8):
        yield f"decode, {name}", f"batch {rows}, position {PROMPT}", model.decoder_at(PROMPT, rows)
    for beams in (1, 3, 5):
        yield f"20 tokens, {name}", f"beams {beams}", partial(model.report, beams, 20)


def width_steps(models: list[SuiteModel]) -> Iterator[Step]:
    """How a token and a prompt grow with the model."""
    for model in models:
        yield "decode by width, 4 layers, int4", f"width {model.width}", model.decoder_at(PROMPT)
        yield "prefill by width, 4 layers, int4", f"width {model.width}", partial(model.prefill, PROMPT)


def results(
    timings: list[StepTimes], machine: Machine, foreign: float | None = None, *, seconds: float = SECONDS
) -> str:
    """`RESULTS.md`: conditions, then a table for each group.

    `foreign`: cores other programs kept busy meanwhile. `seconds`: spent on each line, at least.
    """
    where = environment()
    rates = machine.to_dict()["best"]
    packages = ", ".join(f"{name} {version}" for name, version in where["packages"].items())
    load = machine.spread("scalar_mops")
    conditions = [
        ["CPU", f"{where['cpu']}, {where['cores']} cores used" + (", virtual" if where["virtual_machine"] else "")],
        ["memory", f"{where['memory_gb']} GB, huge pages {where['huge_pages']}"],
        ["system", f"{where['kernel']}, Python {where['python']}"],
        ["versions", f"r2gen {where['r2gen']}, {packages}"],
        ["git commit", str(where["git"])],
        ["measured rates", f"read {number(rates['read_gb_s'])} GB/s, fp32 {number(rates['gemm_fp32_gops'])} Gop/s, "
                           f"int8 {number(rates['gemm_int8_gops'])} Gop/s, {machine.threads} threads"],
        ["steadiness", f"a fixed loop took up to {load:.2f} times its shortest time between begin and end"],
        ["other programs", "not readable" if foreign is None else f"kept {foreign:.1f} cores busy on average"],
        ["time on each line", f"{seconds:g} s and {LEAST} calls, at least"],
        ["date", f"{datetime.now(UTC):%Y-%m-%d}"],
    ]  # fmt: skip
    parts = [
        "# Results of the performance suite",
        f"Written by `python -m benchmarks.suite --seconds {seconds:g} --out benchmarks/suite/RESULTS.md`. "
        "Milliseconds; random weights; every line is called twice to warm up, then timed. Compare lines with each "
        "other, not with another machine's.",
        table(["condition", "value"], conditions),
    ]
    for group in dict.fromkeys(one.group for one in timings):
        rows = [
            [one.name, str(one.n), number(one.p10), number(one.p50), number(one.p90)]
            for one in timings
            if one.group == group
        ]
        parts += [f"## {group}", table(["", "n", "p10", "p50", "p90"], rows)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Make the models, time every step, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default: stdout")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="spent on each line, at least")
    options = parser.parse_args()
    threads = available_cores()
    with tempfile.TemporaryDirectory() as scratch:
        models = [open_model(Path(scratch) / str(width), width, VOCAB, threads) for width in WIDTHS]
        moments = [measure_rates(threads)]
        timings = []
        begin = (processor_seconds(), process_time(), perf_counter())
        for steps in (loop_steps(), model_steps(models[1]), width_steps(models)):
            for step in steps:
                timings.append(time_step(step, options.seconds))
                one = timings[-1]
                print(f"{one.group}: {one.name}: {number(one.p50)} ms", file=sys.stderr)
        end = (processor_seconds(), process_time(), perf_counter())
        moments.append(measure_rates(threads))
    foreign = None
    if begin[0] is not None and end[0] is not None:
        foreign = max(0.0, end[0][0] - begin[0][0] - (end[1] - begin[1])) / (end[2] - begin[2])
    text = results(timings, Machine(threads, tuple(moments)), foreign, seconds=options.seconds)
    if options.out is None:
        print(text, end="")
    else:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
