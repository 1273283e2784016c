"""All contenders on one model, in turn: `python -m benchmarks.peers --shape tinyllama-1.1b --environments DIR`.

Every contender is a process that has the model loaded, its memory in huge pages as `r2gen infer` starts itself; in each
round each of them generates once, the others stopped.
Prompt of 80, 100 new tokens, greedy; then with beams. Random weights: speed means something, words do not, and drafts
neither; their figure comes from reports replayed through the verifier (`recorded_answers.py`).
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.machine_rates import LARGE, read_bandwidth
from benchmarks.peers.environments import finished_mark, python_of
from benchmarks.peers.model import SHAPES, make_model
from benchmarks.peers.recorded_answers import replay_reports
from benchmarks.peers.results import write_results
from r2gen_export.precision import PRECISIONS
from r2gen_export.system.child_process import JsonProcess
from r2gen_export.system.cores import available_cores
from r2gen_export.system.files import atomic_dir
from r2gen_export.system.huge_pages import huge_page_environment
from r2gen_export.system.memory import peak_rss

WORKER: Final = Path(__file__).with_name("worker.py")

OURS: Final = {
    "r2gen": ("onnxruntime", "int4"),
    "r2gen-openvino": ("openvino", "int4"),
    "r2gen-int4-128": ("onnxruntime", "int4-128"),
    "r2gen-openvino-int4-128": ("openvino", "int4-128"),
    "r2gen-int4-f16": ("onnxruntime", "int4-f16"),
    "r2gen-int8": ("onnxruntime", "int8"),
    "r2gen-fp16": ("onnxruntime", "fp16"),
    "r2gen-fp32": ("onnxruntime", "fp32"),
}
"""Engine and precision of our own contenders."""

PEERS: Final = ("transformers", "transformers-bf16", "onnxruntime-genai", "openvino-genai", "llama.cpp")

WIDE: Final = "-128"
"""Behind `onnxruntime-genai` or `openvino-genai`: in blocks of 128, not of 32; they run when `--only` names them."""

DECODERS: Final = ("r2gen", "llama.cpp")
"""Whose plain decoding drafts are compared with."""

GREEDY: Final = ("llama.cpp",)
"""Those without beam search."""

BYTES: Final = {
    **{name: (PRECISIONS[precision].bytes_per_weight,) * 2 for name, (_, precision) in OURS.items()},
    "onnxruntime-genai": (0.625, 0.625),
    "onnxruntime-genai-128": (0.53125, 0.53125),
    "openvino-genai-128": (0.515625, 0.515625),
    "r2gen-fp16": (4.0, 4.0),
    "transformers": (4.0, 4.0),
    "transformers-bf16": (2.0, 2.0),
    "transformers-fp16": (2.0, 2.0),
    "llama.cpp": (0.5625, 0.5625),
    "openvino-genai": (0.5625, 0.5625),
}
"""Of one weight in the layers and in the output layer.

On a CPU, ONNX Runtime widens float16 weights to float32 when it loads them."""


@dataclass
class Contender:
    """One engine's process, stopped unless it is its turn."""

    name: str
    process: JsonProcess
    load_s: float = 0.0
    peak_gb: float = 0.0
    samples: dict[int, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def start(cls, name: str, python: Path, model: Path, threads: int, opened: ExitStack) -> Contender | None:
        """Load; None with a line on stderr when the engine cannot. The process ends when `opened` is left."""
        here = str(Path(__file__).parents[2])
        process = JsonProcess(
            [python, WORKER, engine_of(name), model, str(threads)],
            environment={**os.environ, **huge_page_environment(), **({"PYTHONPATH": here} if name in OURS else {})},
            show_errors="--verbose" in sys.argv,
        )
        opened.callback(process.close)
        one, answer = cls(name, process), process.answer()
        if answer is None:
            print(f"{name}: could not be loaded", file=sys.stderr)
            return None
        one.load_s = answer["load_s"]
        process.signal(signal.SIGSTOP)
        return one

    def run(self, beams: int, new: int) -> None:
        """Generate once; an engine that fails is left out from then on."""
        if not self.process.runs:
            return
        self.process.signal(signal.SIGCONT)
        self.process.put({"beams": beams, "new": new})
        answer = self.process.answer()
        if answer is not None:
            self.samples.setdefault(beams, []).append(answer)
            self.peak_gb = peak_rss(self.process.pid) / 1e9
            self.process.signal(signal.SIGSTOP)

    def time(self, new: int) -> float:
        """Milliseconds for the prompt and so many tokens, greedy; not among the samples."""
        self.run(1, new)
        return float(self.samples[1].pop()["total_ms"])


def bytes_per_token(name: str, shape: str) -> float:
    """Bytes of weights one decoded token reads."""
    config = SHAPES[shape]
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * inner
    each, head = BYTES[name]
    return float(config["num_hidden_layers"] * layer * each + hidden * config["vocab_size"] * head)


def engine_of(name: str) -> str:
    """What the worker calls a contender's engine; a peer's environment has the same name."""
    return f"r2gen-{OURS[name][0]}" if name in OURS else name.removesuffix(WIDE)


def source(name: str, model: Path) -> Path:
    """The folder a contender reads: of our own one for each precision."""
    if name in OURS:
        return model.parent / f"r2gen-{OURS[name][1]}"
    return model if name.startswith("transformers") else model.parent / name


def convert(name: str, model: Path, target: Path, python: Path) -> None:
    """What the contender reads, made once, whole or not at all."""
    if target == model or target.exists():
        return
    quiet = None if "--verbose" in sys.argv else subprocess.DEVNULL
    engine, block = engine_of(name), "128" if name.endswith(WIDE) else "32"
    with atomic_dir(target, subject=target.name) as out:
        if name in OURS:
            from benchmarks.peers.ours import convert as convert_ours

            convert_ours(model, out, OURS[name][1])
            return
        command: list[str | Path]
        if engine == "onnxruntime-genai":
            options = ["int4_accuracy_level=4", f"int4_block_size={block}"]
            command = [python, "-m", "onnxruntime_genai.models.builder", "-p", "int4", "-e", "cpu", "-i", model]
            command += ["-o", out, "-c", out / "cache", "--extra_options", *options]
        elif engine == "openvino-genai":
            # With llama.cpp's file its GGUF reader failed (`map::at`, 2026.4), so as its users export.
            command = [python, "-m", "optimum.commands.optimum_cli", "export", "openvino", "-m", model]
            command += ["--task", "text-generation-with-past", "--weight-format", "int4", "--group-size", block]
            command += ["--sym", "--ratio", "1.0", out]
        else:
            command = [python, WORKER.with_name("gguf_file.py"), model, out]
        subprocess.run(command, check=True, stdout=quiet, stderr=quiet)


def start_all(
    names: Sequence[str], environments: Path | None, model: Path, threads: int, opened: ExitStack
) -> list[Contender]:
    """The contenders that can be converted and loaded; why others are not among them stands on stderr."""
    contenders: list[Contender] = []
    for name in names:
        if name in OURS or name.startswith("transformers"):
            python = Path(sys.executable)
        elif environments and finished_mark(environments, engine_of(name)).exists():
            python = python_of(environments, engine_of(name))
        else:
            print(f"{name}: no environment for it", file=sys.stderr)
            continue
        folder = source(name, model)
        try:
            convert(name, model, folder, python)
        except subprocess.CalledProcessError as error:
            print(f"{name}: its conversion failed ({error.returncode})", file=sys.stderr)
            continue
        if started := Contender.start(name, python, folder, threads, opened):
            contenders.append(started)
    return contenders


def table(contenders: list[Contender], shape: str, bandwidth: float, wide: Sequence[int]) -> None:
    """Print the figures, medians over the rounds; of beam search with each of the widths `wide` the whole time."""
    print(
        f"{'':24}{'prefill ms':>11}{'ms/token':>10}{'total s':>9}{'GB/s':>7}{'of read':>9}{'load s':>8}{'peak GB':>9}"
    )
    for one in contenders:
        runs = one.samples.get(1, [])
        if not runs:
            continue
        prefill = statistics.median(run["prefill_ms"] for run in runs)
        token = statistics.median(step for run in runs for step in run["decode_ms"])
        total = statistics.median(run["total_ms"] for run in runs) / 1000
        rate = bytes_per_token(one.name, shape) / 1e6 / token
        print(
            f"{one.name:24}{prefill:11.0f}{token:10.1f}{total:9.2f}{rate:7.1f}{rate / bandwidth:9.0%}"
            f"{one.load_s:8.1f}{one.peak_gb:9.2f}"
        )
    for beams in wide:
        for one in contenders:
            if runs := one.samples.get(beams, []):
                spent = statistics.median(run["total_ms"] for run in runs) / 1000
                print(f"{one.name:24}beam {beams}: total {spent:.2f} s")


def main() -> None:
    """Make, convert, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--environments", type=Path, help="made by benchmarks.peers.environments")
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and its conversions, kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--only", help="contenders, comma-separated")
    replayed = "reports replayed in each of r2gen's contenders, each way, a third to warm up; 0: none"
    parser.add_argument("--replay", type=int, default=30, help=replayed)
    parser.add_argument("--verbose", action="store_true", help="what the engines print")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, for r2gen bench --peers")
    options = parser.parse_args()
    threads = available_cores()
    model = options.work / options.shape / "model"
    if not (model / "tokenizer_config.json").exists():
        make_model(model, options.shape)
    names = options.only.split(",") if options.only else ("r2gen", "r2gen-openvino", *PEERS)
    with ExitStack() as opened:
        contenders = start_all(names, options.environments, model, threads, opened)
        plan = {1: options.rounds} | ({options.beams: max(1, options.rounds // 2)} if options.beams > 1 else {})
        for beams, rounds in plan.items():
            for warm in range(rounds + 1):
                for one in contenders:
                    if beams > 1 and one.name in GREEDY:
                        continue
                    one.run(beams, options.new)
                    if not warm:
                        one.samples.pop(beams, None)
        bandwidth = read_bandwidth(threads, threads * LARGE)
        print(
            f"{options.shape}, {threads} threads, prompt 80, {options.new} new tokens, medians of {options.rounds} "
            f"rounds after one to warm up, in turn; {bandwidth:.1f} GB/s read; {platform.machine()}"
        )
        table(contenders, options.shape, bandwidth, list(plan)[1:])
        settings = {"shape": options.shape, "threads": threads, "prompt": 80, "new_tokens": options.new}
        settings |= {"rounds": options.rounds, "beams": options.beams, "read_gb_s": round(bandwidth, 1)}
        write_results(options.json, contenders, settings, options.beams)
        if options.replay:
            running = {one.name: one for one in contenders if one.samples.get(1) and one.process.runs}
            ours = {name: (source(name, model), OURS[name][0]) for name in running if name in OURS}
            plain = [name for name in running if name in DECODERS]
            if ours:
                replay_reports(ours, options.replay, threads, plain, lambda name, new: running[name].time(new))


if __name__ == "__main__":
    main()
