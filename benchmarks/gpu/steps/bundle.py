"""Steps on a small bundle: where its nodes run, and whether a device's numbers and tokens are the CPU's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.measure import measure_bundle
from benchmarks.gpu.steps import Answer, Context
from r2gen_export.bundle import Dims, load_manifest
from r2gen_export.precision import PRECISIONS
from r2gen_export.runtime.backends.ort_providers import PLAIN, Acceleration, choose_providers

Logits = dict[str, NDArray[np.float32]]


def placement(context: Context, bundle: str) -> Answer:
    """See `benchmarks.gpu.measure`."""
    if context.device == "cpu":
        return {"skipped": "both sides are the CPU"}
    return measure_bundle(context.work / "bundles" / bundle)


def parity(context: Context, bundle: str) -> Answer:
    """A bundle on the device against itself on the CPU: logits through every kind of pass, then token ids."""
    folder = context.work / "bundles" / bundle
    answer: Answer = {"walk": {}}
    manifest = load_manifest(folder)
    dims = manifest.dims
    variants = {"plain": PLAIN, "accelerated": Acceleration()}
    if PRECISIONS[manifest.precision["decoder"]].blocks:
        variants["int4_gemm"] = Acceleration(cuda_graph=False, int4_gemm=True)
    expected = _walk(folder, dims, "cpu", PLAIN)
    for name, acceleration in variants.items():
        try:
            answer["walk"][name] = compare(expected, _walk(folder, dims, context.device, acceleration))
        except Exception as error:  # whatever ONNX Runtime raises is the answer
            answer["walk"][name] = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    return answer | _reports(folder, context.device)


def _reports(folder: Path, device: str) -> Answer:
    """Token ids of four studies through `Pipeline`, greedy and with three beams."""
    from r2gen_export.runtime.pipeline import Pipeline

    images = [np.random.default_rng(seed).integers(0, 256, (64, 64), dtype=np.uint8) for seed in range(4)]
    answer: Answer = {}
    reports: dict[str, list[list[list[int]]]] = {}
    for side, name in (("cpu", "cpu"), ("device", device)):
        try:
            pipeline = Pipeline.from_bundle(folder, device=name)
            answer[f"{side}_provider"], answer[f"{side}_steps"] = pipeline.provider.name, pipeline.provider.steps
            reports[side] = []
            for beams in (1, 3):
                settings: dict[str, Any] = {"num_beams": beams, "min_new_tokens": 20, "max_new_tokens": 24}
                reports[side].append([list(pipeline.generate(image, **settings).token_ids) for image in images])
        except Exception as error:
            return answer | {"error": f"{side}: {type(error).__name__}: {str(error)[:300]}"}
    for name, ours, theirs in zip(("greedy", "beam3"), reports["cpu"], reports["device"], strict=True):
        pairs = list(zip(ours, theirs, strict=True))
        answer[name] = {
            "equal": sum(a == b for a, b in pairs),
            "of": len(pairs),
            "first_difference": [_first_difference(a, b) for a, b in pairs],
        }
    return answer


def _first_difference(ours: list[int], theirs: list[int]) -> int:
    """Position of the first token that differs, -1 when none does."""
    return next((index for index, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), -1)


def _walk(folder: Path, dims: Dims, device: str, acceleration: Acceleration) -> Logits:
    """Logits behind each pass of a scripted life of the cache."""
    from r2gen_export.runtime.backends.ort_decoder import DecoderSession

    providers = choose_providers(device).providers
    session = DecoderSession(folder / "decoder/model.onnx", dims, providers=providers, acceleration=acceleration)
    rng = np.random.default_rng(5)

    def embeds(rows: int, size: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.5, (rows, size, dims.d_llm)).astype(np.float32)

    state = session.prefill(embeds(1, 40), 60)
    logits = {"prefill": state.logits.copy()}
    for step in range(3):  # the second replays what the first captured
        state.decode(embeds(1, 1))
        logits[f"decode {step}"] = state.logits.copy()
    logits["extend 5"] = state.extend(embeds(1, 5)).copy()
    state.rollback(3)
    state.decode(embeds(1, 1))
    logits["rolled back, decode"] = state.logits.copy()
    for rows in ([0, 0, 0], [2, 0, 1], [0, 0, 1], [1, 2]):
        state.reorder(np.array(rows))
        state.decode(embeds(len(rows), 1))
        logits[f"rows {rows}, decode"] = state.logits.copy()
    again = session.prefill(embeds(2, 40), 60)
    logits["a second report, two prompts"] = again.logits.copy()
    again.decode(embeds(2, 1))
    logits["its decode"] = again.logits.copy()
    return logits


def compare(expected: Logits, actual: Logits) -> dict[str, Any]:
    """Relative difference in the norm, least cosine, equal top-1 of each entry; `worst`: the largest difference."""
    answer: dict[str, Any] = {}
    for name, values in expected.items():
        width = values.shape[-1]
        a, b = (each.reshape(-1, width).astype(np.float64) for each in (values, actual[name]))
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = float(((a * b).sum(1) / np.where(norms == 0, 1, norms)).min())
        difference = float(np.linalg.norm(a - b) / np.linalg.norm(a))
        answer[name] = {
            "relative": round(difference, 6),
            "cosine": round(cosine, 6),
            "top1": bool((a.argmax(1) == b.argmax(1)).all()),
        }
    answer["worst"] = max(entry["relative"] for entry in answer.values())
    return answer
