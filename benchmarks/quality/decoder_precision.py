"""Quality of the embedded demo with fewer bits of the decoder: `python -m benchmarks.quality.decoder_precision`.

The demo's LLaMA is read back from its graph and written again in each precision. On phantoms it was not trained on: the
distance of the next token's distribution from fp32, both fed the report that fp32 writes, and the findings that reports
name. Activations are rounded as in use.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.vision_precision import read_phantoms
from r2gen_export import bundle as layout
from r2gen_export.bundle import Manifest, demo_bundle, load_manifest, seal
from r2gen_export.evaluation.phantom_findings import score_phantoms, write_held_out
from r2gen_export.exporting.decoder.export import write_decoder
from r2gen_export.exporting.parity.compare import prompts_around, step_logits
from r2gen_export.exporting.parity.metrics import distribution_metrics
from r2gen_export.precision import PRECISIONS
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.ort_decoder import DecoderSession
from r2gen_export.runtime.backends.ort_vision import VisionSession
from r2gen_export.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

Floats = NDArray[np.float32]

CPU: Final[dict[str, Any]] = {"providers": ("CPUExecutionProvider",), "threads": 1}

DIALECT: Final = "trt"
"""Heads of 24 values, which `GroupQueryAttention` of the dialect `ort` does not take."""

VARIANTS: Final = {
    **{name: (name, name, "fp32") for name in PRECISIONS},
    "int4, output layer int8": ("int4", "int8", "fp32"),
    "fp32, embeddings int8": ("fp32", "fp32", "int8"),
}
"""Precision of the layers, of the output layer and of the embeddings."""


def read_llama(bundle: Path) -> LlamaForCausalLM:
    """The LLaMA of a bundle whose decoder is in dialect `standard`, float32.

    Raises:
        RuntimeError: when the graph's weights are not those of the LLaMA that its `config.json` describes.
    """
    import onnx
    import torch
    from onnx import numpy_helper
    from transformers import LlamaConfig, LlamaForCausalLM

    path = bundle / layout.DECODER
    graph = onnx.load(path).graph
    arrays = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    state = {name: array for name, array in arrays.items() if not name.startswith("onnx::")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            # `/model/layers.0/self_attn/q_proj/MatMul`, of a matrix [K, N].
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            state[f"{name}.weight"] = arrays[node.input[1]].T
    state["model.embed_tokens.weight"] = np.load(bundle / layout.EMBED_TOKENS)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(path.parent))
    model.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    return model.eval()


def write_bundle(model: LlamaForCausalLM, variant: str, target: Path) -> Manifest:
    """The demo bundle with its decoder and embeddings in other precisions."""
    import torch

    from r2gen_export.exporting.tokenizer import write_embeddings

    precision, head, embeddings = VARIANTS[variant]
    source = load_manifest(demo_bundle())
    shutil.copytree(demo_bundle(), target, ignore=shutil.ignore_patterns("decoder"))
    write_decoder(model, target / "decoder", dialect=DIALECT, precision=precision, head_precision=head)
    table = model.get_input_embeddings()
    assert isinstance(table, torch.nn.Embedding)
    write_embeddings(table, target / layout.EMBED_TOKENS, embeddings)
    now = {**source.precision, "decoder": precision, "lm_head": head, "embed_tokens": embeddings}
    return seal(target, dataclasses.replace(source, dialect=DIALECT, precision=now))


def read_prompts(bundle: Path, images: list[Floats]) -> list[Floats]:
    """Prompts [1, S, d] around image embeddings [1, T, d], with the bundle's own embeddings."""
    table = EmbeddingTable(bundle / layout.EMBED_TOKENS)
    prompt = load_manifest(bundle).prompt
    return [prompts_around(table, prompt, [one]) for one in images]


def next_logits(bundle: Path, prompts: list[Floats], reports: list[list[int]]) -> Floats:
    """Logits [positions, vocab] behind each prompt and behind each token of its report but the last."""
    decoder = DecoderSession(bundle / layout.DECODER, load_manifest(bundle).dims, **CPU)
    table = EmbeddingTable(bundle / layout.EMBED_TOKENS)
    found = [
        step_logits(decoder.prefill(prompt, len(report)), table, np.array([report[:-1]], np.int64))[0]
        for prompt, report in zip(prompts, reports, strict=True)
    ]
    return np.concatenate(found)


def measure(work: Path, variants: list[str], studies: int, compared: int) -> None:
    """Print a line for each variant."""
    phantoms = work / "held-out"
    write_held_out(phantoms, studies)
    model = read_llama(demo_bundle())
    annotation = json.loads((phantoms / "annotation.json").read_text(encoding="utf-8"))["test"][:compared]
    images = [[phantoms / "images" / path for path in study["image_path"]] for study in annotation]
    exact = Pipeline.from_bundle(demo_bundle(), device="cpu", threads=1)
    reports = [list(one.unwrap().token_ids) for one in exact.generate_many(images, preset="fast")]
    encoder = VisionSession(demo_bundle() / layout.VISION, **CPU)
    pixels = read_phantoms(phantoms, "test", load_manifest(demo_bundle()).image)
    embeds = [encoder.encode(study) for study in islice(pixels, compared)]
    wanted = next_logits(demo_bundle(), read_prompts(demo_bundle(), embeds), reports)
    print(f"demo, {studies} held-out phantoms, {len(wanted)} positions of the reports of {compared}")
    for variant in dict.fromkeys(variants):
        bundle = work / variant
        write_bundle(model, variant, bundle)
        found = distribution_metrics(next_logits(bundle, read_prompts(bundle, embeds), reports), wanted)
        score = score_phantoms(Pipeline.from_bundle(bundle, device="cpu", threads=1), phantoms, preset="fast")
        print(
            f"{variant}: micro-F1 {score.f1.f1:.3f}, KL mean {found['kl_mean']:.1e}, max {found['kl_max']:.1e} nats, "
            f"top-1 {found['top1']:.1%}",
            flush=True,
        )


def main() -> None:
    """Draw the phantoms, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=VARIANTS, action="append", help="leave out the others; may be repeated")
    parser.add_argument("--studies", type=int, default=500, help="held-out phantoms for micro-F1")
    parser.add_argument("--compared", type=int, default=40, help="of them, those whose distributions are compared")
    options = parser.parse_args()
    if not 1 <= options.compared <= options.studies:
        parser.error(f"--compared {options.compared} of --studies {options.studies}")
    with tempfile.TemporaryDirectory() as scratch:
        measure(Path(scratch), options.only or list(VARIANTS), options.studies, options.compared)


if __name__ == "__main__":
    main()
