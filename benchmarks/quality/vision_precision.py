"""Static against dynamic int8 of the vision encoder: `python -m benchmarks.quality.vision_precision --work DIR`.

Time: a Swin-base with projector, random weights, one view, the contenders in turn. Quality: the demo bundle's encoder,
trained on phantoms, each contender in the place of `vision.onnx`: distance of the image tokens from float32 and the
findings its reports name. Static (QDQ) activations are calibrated on phantoms the demo was trained on. What is built
is kept in DIR; `--rounds 0` builds and leaves the clock alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.random_sources import SWIN_BASE
from r2gen_export import bundle as layout
from r2gen_export.bundle import ImageSpec, demo_bundle, load_manifest, seal
from r2gen_export.evaluation.phantom_findings import DEMO_SEED, score_phantoms, write_held_out
from r2gen_export.exporting.quiet import quiet
from r2gen_export.exporting.vision_precision import lower_precision, projector_nodes
from r2gen_export.phantoms import write_phantoms
from r2gen_export.runtime.backends.ort_vision import VisionSession
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.studies.images import load_image, preprocess
from r2gen_export.system.cores import available_cores

Floats = NDArray[np.float32]

CPU: Final = ("CPUExecutionProvider",)

D_LLM: Final = 4096

MATRICES: Final = ("MatMul", "Gemm")

STATIC: Final[dict[str, dict[str, Any]]] = {
    "static, matrices": {"op_types_to_quantize": list(MATRICES)},
    "static, matrices, float outputs": {
        "op_types_to_quantize": list(MATRICES),
        "extra_options": {"OpTypesToExcludeOutputQuantization": list(MATRICES)},
    },
    "static, matrices, float outputs, 99.99 %": {
        "op_types_to_quantize": list(MATRICES),
        "extra_options": {"OpTypesToExcludeOutputQuantization": list(MATRICES), "CalibPercentile": 99.99},
        "calibrate_method": "Percentile",
    },
    "static, all operators": {},
}
"""By name, what `quantize_static` is told: matrices of weights, as the dynamic one, or its own choice of operators."""

CONTENDERS: Final = ("fp32", "dynamic", *STATIC)


def make_swin_base(path: Path) -> None:
    """Write the float32 graph of a Swin-base with random weights and a projector to `D_LLM`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, SwinConfig, SwinModel

    from r2gen_export.exporting.vision import export_vision
    from r2gen_export.training.model import ModelConfig, R2GenGPT

    torch.manual_seed(0)
    llm = LlamaConfig(vocab_size=8, hidden_size=D_LLM, intermediate_size=8, num_hidden_layers=0)
    model = R2GenGPT(SwinModel(SwinConfig(**SWIN_BASE)), LlamaForCausalLM(llm), None, ModelConfig())
    export_vision(model, path, height=224, width=224)


def write_contender(name: str, source: Path, target: Path, calibration: Sequence[Floats]) -> None:
    """Write `source`, a float32 graph, as the contender is stored.

    Args:
        name: one of `CONTENDERS`.
        source: its weights are inside it.
        target: the file to write.
        calibration: pixel values [1, 3, H, W] of views.
    """
    if name in ("fp32", "dynamic"):
        shutil.copyfile(source, target)
        lower_precision(target, "fp32" if name == "fp32" else "int8")
        return
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        """What `quantize_static` draws from."""

        def __init__(self) -> None:
            self._views = iter(calibration)

        def get_next(self) -> dict[str, Floats] | None:
            """The next input, None behind the last."""
            view = next(self._views, None)
            return None if view is None else {"pixel_values": view}

    model = onnx.load(source)
    left = projector_nodes(model)
    options = {"calibrate_method": "MinMax", **STATIC[name]}
    if "op_types_to_quantize" in options:
        # As `quantize_dynamic` does when told so; in QDQ ONNX Runtime 1.31 ignores `MatMulConstBOnly`.
        weights = {tensor.name for tensor in model.graph.initializer}
        left += [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] not in weights]
    with quiet():
        quantize_static(
            source,
            target,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,  # with int8 weights, what the CPU's kernel takes
            weight_type=QuantType.QInt8,
            nodes_to_exclude=left,
            calibrate_method=CalibrationMethod[options.pop("calibrate_method")],
            **options,
        )


def read_phantoms(folder: Path, split: str, spec: ImageSpec) -> Iterator[Floats]:
    """Pixel values [V, 3, H, W] of a split's studies."""
    for study in json.loads((folder / "annotation.json").read_text(encoding="utf-8"))[split]:
        yield preprocess([load_image(folder / "images" / path) for path in study["image_path"]], spec)


def build(work: Path, calibration: int, studies: int) -> None:
    """Write phantoms and both encoders as every contender, unless they are there."""
    spec = load_manifest(demo_bundle()).image
    if not (work / "calibration").exists():
        write_phantoms(work / "calibration", calibration, DEMO_SEED, val_fraction=0.0, test_fraction=0.0)
    if not (work / "held-out").exists():
        write_held_out(work / "held-out", studies)
    # One view at a time: the calibrator by percentiles wants inputs of one shape.
    drawn = [view[None] for study in read_phantoms(work / "calibration", "train", spec) for view in study]
    if not (work / "swin-base.onnx").exists():
        make_swin_base(work / "swin-base.onnx")
    shutil.copyfile(demo_bundle() / layout.VISION, work / "demo.onnx")
    for model, shown in (("demo", drawn), ("swin-base", drawn[:8])):  # random weights need no more
        for name in CONTENDERS:
            target = contender_path(work, model, name)
            if not target.exists():
                print(f"writing {model}, {name}")
                scratch = target.with_suffix(".building")
                write_contender(name, work / f"{model}.onnx", scratch, shown)
                scratch.replace(target)


def contender_path(work: Path, model: str, name: str) -> Path:
    """Where a contender's graph is kept."""
    return work / f"{model}, {name}.onnx"


def measure_quality(work: Path) -> None:
    """Print each contender's distance from float32 on the held-out phantoms, and its micro-F1."""
    studies = list(read_phantoms(work / "held-out", "test", load_manifest(demo_bundle()).image))
    exact = VisionSession(contender_path(work, "demo", "fp32"), providers=CPU)
    wanted = [exact.encode(study) for study in studies]
    print(f"demo encoder, {len(studies)} held-out phantoms")
    for name in CONTENDERS:
        path = contender_path(work, "demo", name)
        session = VisionSession(path, providers=CPU)
        found = [session.encode(study) for study in studies]
        cosines = [
            float((one * two).sum() / np.linalg.norm(one) / np.linalg.norm(two))
            for one, two in zip(found, wanted, strict=True)
        ]
        worst = max(float(np.abs(one - two).max()) for one, two in zip(found, wanted, strict=True))
        changed = work / "bundle"
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(demo_bundle(), changed)
        shutil.copyfile(path, changed / layout.VISION)
        seal(changed, load_manifest(demo_bundle()))
        score = score_phantoms(Pipeline.from_bundle(changed, device="cpu"), work / "held-out").f1
        print(
            f"{name}: cosine mean {statistics.mean(cosines):.5f}, least {min(cosines):.5f}, max abs {worst:.3f} of "
            f"{max(float(np.abs(one).max()) for one in wanted):.2f}; micro-F1 {score.f1:.3f} "
            f"(precision {score.precision:.3f}, recall {score.recall:.3f}); {path.stat().st_size / 1e6:.2f} MB",
            flush=True,
        )


def measure_time(work: Path, rounds: int, threads: int) -> None:
    """Print the milliseconds of one view through each contender, in turn, and the ratio to float32 of the same run."""
    pixels = np.random.default_rng(0).normal(0, 1, (1, 3, 224, 224)).astype(np.float32)
    sessions = {
        name: VisionSession(contender_path(work, "swin-base", name), providers=CPU, threads=threads)
        for name in CONTENDERS
    }
    samples: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds + 1):
        for name, session in sessions.items():
            started = perf_counter()
            session.encode(pixels)
            samples[name].append((perf_counter() - started) * 1000)
    print(f"Swin-base, random weights, one view, {threads} threads, {rounds} rounds in turn behind one for warming up")
    base = statistics.median(samples["fp32"][1:])
    for name, values in samples.items():
        median = statistics.median(values[1:])
        raw = " ".join(f"{value:.0f}" for value in values[1:])
        size = contender_path(work, "swin-base", name).stat().st_size / 1e6
        print(f"{name}: {median:.1f} ms, {median / base:.2f} of fp32; {size:.0f} MB; samples {raw}")


def main() -> None:
    """Build what is lacking, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for graphs and phantoms, about 1 GB")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--calibration", type=int, default=64, help="phantoms to calibrate on")
    parser.add_argument("--studies", type=int, default=200, help="held-out phantoms for the quality, 0: leave it out")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    build(options.work, options.calibration, options.studies or 1)
    if options.studies:
        measure_quality(options.work)
    if options.rounds:
        measure_time(options.work, options.rounds, options.threads)


if __name__ == "__main__":
    main()
