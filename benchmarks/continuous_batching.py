"""What it gains to put the next study in the place of one that ends: `python -m benchmarks.continuous_batching`.

Studies whose reports differ in length are decoded in batches that begin together, and in a running batch that they
enter and leave, in turn, in one process. Reports are compared token for token. `demo`: phantoms through the whole
pipeline, with the demo's decoder written in dialect `trt`, whose cache keeps a length for each row (`ort` takes no
heads of 24 values). `shape`: the decoder alone, at the 1.1B shape with random weights (`benchmarks.peers` writes it),
reports of lengths drawn evenly.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import Manifest, demo_bundle, load_manifest, seal
from r2gen_export.decoding import Decoding
from r2gen_export.interfaces import Embeddings
from r2gen_export.runtime.decoding.batch import RunningBatch
from r2gen_export.runtime.decoding.batch_studies import Request
from r2gen_export.runtime.decoding.generate import generate
from r2gen_export.runtime.pipeline import Pipeline

EOS: Final = 2
MODES: Final = ("static", "running")
Tokens = list[tuple[int, ...]]


class Counted:
    """A decoder that counts passes and rows. `studies`: what it is asked to decode goes through it."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.row_lengths, self.wide_rows = decoder.row_lengths, decoder.wide_rows
        self.passes = self.rows = 0

    def prefill(self, embeds: NDArray[np.float32], room: int) -> Any:
        return self._counted(self._decoder.prefill(embeds, room), "decode")

    def open_rows(self, rows: int, positions: int) -> Any:
        return self._counted(self._decoder.open_rows(rows, positions), "advance")

    def _counted(self, state: Any, name: str) -> Any:
        call = getattr(state, name)

        def counted(embeds: NDArray[np.float32]) -> Any:
            self.passes += 1
            self.rows += len(embeds)
            return call(embeds)

        setattr(state, name, counted)
        return state


@dataclass(frozen=True)
class Run:
    """One run of all studies. `rows`: of a pass, mean."""

    seconds: float
    cpu_seconds: float
    passes: int
    rows: float
    tokens: Tokens


def timed(decoder: Counted, work: Callable[[], Tokens]) -> Run:
    """Run once."""
    decoder.passes = decoder.rows = 0
    started, cpu = perf_counter(), process_time()
    tokens = work()
    elapsed = perf_counter() - started
    return Run(elapsed, process_time() - cpu, decoder.passes, decoder.rows / max(1, decoder.passes), tokens)


def compare(title: str, decoder: Counted, work: Callable[[str], Tokens], rounds: int) -> None:
    """Run both ways in turn, and print what each took."""
    runs: dict[str, list[Run]] = {mode: [] for mode in MODES}
    for number in range(rounds):
        for mode in MODES if number % 2 == 0 else MODES[::-1]:
            runs[mode].append(timed(decoder, lambda mode=mode: work(mode)))  # type: ignore[misc]
    same = all(one.tokens == runs["static"][0].tokens for mode in MODES for one in runs[mode])
    first = runs["static"][0].tokens
    lengths = [len(tokens) for tokens in first]
    print(f"\n{title}: {len(first)} reports of {min(lengths)} to {max(lengths)} tokens (median {median(lengths)})")
    print(f"{'':<10}{'s':>9}{'CPU s':>9}{'passes':>9}{'rows':>7}")
    for mode in MODES:
        best = runs[mode]
        print(
            f"{mode:<10}{median(one.seconds for one in best):>9.2f}{median(one.cpu_seconds for one in best):>9.2f}"
            f"{best[0].passes:>9}{best[0].rows:>7.2f}"
        )
    pairs = list(zip(runs["running"], runs["static"], strict=True))
    ratios = ", ".join(f"{one.seconds / other.seconds:.2f}" for one, other in pairs)
    cpu = ", ".join(f"{one.cpu_seconds / other.cpu_seconds:.2f}" for one, other in pairs)
    print(f"running / static, each round: {ratios}; of CPU time: {cpu}; tokens {'equal' if same else 'DIFFER'}")


def demo_in_trt(out: Path) -> Manifest:
    """The demo bundle with its decoder in dialect `trt`, from the weights of the graph that it has in `standard`."""
    import onnx
    import torch
    from onnx import numpy_helper
    from transformers import LlamaConfig, LlamaForCausalLM

    from r2gen_export.exporting.decoder.export import write_decoder

    shutil.copytree(demo_bundle(), out)
    graph = onnx.load(out / "decoder/model.onnx").graph
    stored = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    weights = {name: array for name, array in stored.items() if name.endswith("norm.weight")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in stored:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{name}.weight"] = stored[node.input[1]].T
    weights["model.embed_tokens.weight"] = np.load(out / "embed_tokens.npy").astype(np.float32)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(out / "decoder")).eval()
    model.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in weights.items()})
    shutil.rmtree(out / "decoder")
    write_decoder(model, out / "decoder", dialect="trt", precision="fp32")
    manifest: Manifest = dataclasses.replace(load_manifest(demo_bundle()), dialect="trt")
    return seal(out, manifest)


def measure_demo(options: argparse.Namespace, folder: Path) -> None:
    """Phantoms through the whole pipeline, greedy and beams."""
    from r2gen_export.phantoms import write_phantoms

    write_phantoms(folder / "phantoms", options.studies, 11, workers=1, progress=False)
    images = sorted((folder / "phantoms/images").glob("*/0.png"))
    demo_in_trt(folder / "demo")
    pipeline = Pipeline.from_bundle(folder / "demo", device=options.device, threads=options.threads)
    shipped = Pipeline.from_bundle(device="cpu", threads=options.threads)
    decoder = Counted(pipeline.model.decoder)
    pipeline.model.decoder = decoder  # type: ignore[assignment]
    for preset in options.presets.split(","):

        def work(mode: str, preset: str = preset) -> Tokens:
            decoder.row_lengths = mode == "running"
            outcomes = pipeline.generate_many(images, batch_size=options.batch, preset=preset)
            return [outcome.unwrap().token_ids for outcome in outcomes]

        work("running")  # warms up
        compare(f"demo, preset {preset}, {options.batch} at a time", decoder, work, options.rounds)
        reports = shipped.generate_many(images, batch_size=options.batch, preset=preset)
        same = [one.unwrap().token_ids for one in reports] == work("running")
        print(f"the demo as it ships, in dialect standard, writes {'the same' if same else 'OTHER'} reports")


class Planned:
    """A decoder for `generate` whose rows end at lengths given in advance: random weights never write EOS."""

    def __init__(self, decoder: Counted) -> None:
        self._decoder = decoder
        self.lengths: list[int] = []

    def prefill(self, embeds: NDArray[np.float32], room: int) -> _PlannedState:
        return _PlannedState(self._decoder.prefill(embeds, room), np.array(self.lengths))


class _PlannedState:
    def __init__(self, state: Any, lengths: NDArray[np.int64]) -> None:
        self._state, self._lengths, self._written = state, lengths, 1

    @property
    def logits(self) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._state.logits
        logits[:, EOS] = np.where(self._lengths == self._written, 1e4, -1e4)
        return logits

    def decode(self, embeds: NDArray[np.float32]) -> None:
        self._written += 1
        self._state.decode(embeds)

    def reorder(self, rows: NDArray[np.int64]) -> None:
        self._lengths = self._lengths[rows]
        self._state.reorder(rows)


def measure_shape(options: argparse.Namespace) -> None:
    """The decoder alone: prompts, then greedy tokens up to a length drawn for each report."""
    from benchmarks.peers.ours import open_decoder

    opened, table = open_decoder(options.decoder, options.threads, options.engine)
    decoder = Counted(opened)
    rng = np.random.default_rng(5)
    count = options.studies
    prompts = [table.lookup(rng.integers(3, table.vocab_size, (1, options.prompt))) for _ in range(count)]
    lengths = rng.integers(options.shortest, options.longest + 1, count).tolist()

    def work(mode: str) -> Tokens:
        make = _running if mode == "running" else _static
        return make(decoder, table, prompts, lengths, options.batch)

    title = f"1.1B shape, decoder in {options.engine}, {options.batch} at a time, {options.threads} thread(s)"
    compare(title, decoder, work, options.rounds)


def _settings(length: int) -> Decoding:
    return Decoding(num_beams=1, min_new_tokens=length, max_new_tokens=length, repetition_penalty=1.0)


def _static(
    decoder: Counted, table: Embeddings, prompts: list[NDArray[np.float32]], lengths: list[int], size: int
) -> Tokens:
    planned: Any = Planned(decoder)
    tokens: Tokens = []
    settings = dataclasses.replace(_settings(max(lengths)), min_new_tokens=0)
    for first in range(0, len(prompts), size):
        planned.lengths = lengths[first : first + size]
        batch = np.concatenate(prompts[first : first + size])
        written = generate(planned, table, batch, settings, bos_token_id=1, eos_token_id=EOS)
        tokens += [one.token_ids[:-1] for one in written]  # the last one is the EOS that was put there
    return tokens


def _running(
    decoder: Counted, table: Embeddings, prompts: list[NDArray[np.float32]], lengths: list[int], size: int
) -> Tokens:
    positions = prompts[0].shape[1] + max(lengths)
    batch = RunningBatch(decoder, table, rows=size, positions=positions, bos_token_id=1, eos_token_id=EOS)
    waiting = list(enumerate(map(Request, prompts, map(_settings, lengths))))[::-1]
    tokens: dict[int, tuple[int, ...]] = {}
    while waiting or len(batch):
        ended = []
        while waiting and batch.fits(waiting[-1][1]):
            ended += batch.add(*waiting.pop()).ended
        ended += batch.step().ended
        tokens |= {one.key: one.sequence.token_ids[:-1] for one in ended if one.sequence}
    return [tokens[key] for key in range(len(prompts))]


def main() -> None:
    """Measure one part and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["demo", "shape"])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8, help="studies decoded together")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way, in turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of the demo: cpu (ONNX Runtime) or openvino")
    parser.add_argument("--presets", default="fast,paper", help="of the demo")
    parser.add_argument("--decoder", type=Path, help="of the shape: folder that benchmarks.peers wrote (DIR/r2gen)")
    parser.add_argument("--engine", choices=["onnxruntime", "openvino"], default="onnxruntime", help="of the shape")
    parser.add_argument("--prompt", type=int, default=80, help="positions of a prompt of the shape")
    parser.add_argument("--shortest", type=int, default=10, help="tokens of a report of the shape")
    parser.add_argument("--longest", type=int, default=120)
    options = parser.parse_args()
    if options.part == "shape":
        if options.decoder is None:
            parser.error("shape needs --decoder")
        measure_shape(options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        measure_demo(options, Path(scratch))


if __name__ == "__main__":
    main()
