"""From a bundle's ONNX file to the one an engine is built of: precision in the graph, fixed cache, profiles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from r2gen_export.bundle import Manifest
from r2gen_export.candidates import GraphPart
from r2gen_export.errors import R2GenError
from trt_engines import decoder_graph
from trt_engines.graph import INT4, Graph
from trt_engines.identity import Profile, Shapes
from trt_engines.store import SOURCES
from trt_engines.strong_typing import make_half, make_single
from trt_engines.weights import dequantised, filled, quantised

PRECISIONS: Final = ("fp32", "fp16", "int4")

LENGTH_STEP: Final = 64
"""Caches are whole multiples of this long, as ONNX Runtime's are (`runtime/backends/ort_decoder.py`)."""

DRAFTED: Final = 8
"""Most tokens one pass verifies beyond its own (`runtime/drafting/drafter.py`)."""


@dataclass(frozen=True)
class Limits:
    """Largest shapes an engine takes: views of a study, rows decoded together (studies times beams), positions."""

    max_views: int = 8
    max_batch: int = 8
    max_length: int | None = None

    def length(self, manifest: Manifest) -> int:
        """Positions of the cache: what was asked for, else what the prompt and the longest preset take.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE` for more than the model has, or fewer than its prompt takes.
        """
        most, prompt = manifest.dims.max_positions, manifest.prompt.length(manifest.dims.image_tokens)
        if self.max_length is not None:
            if not prompt < self.max_length <= most:
                message = f"a cache of {self.max_length} positions; the prompt takes {prompt}, the model has {most}"
                raise R2GenError("R2G-CONFIG-VALUE", message, f"--max-length between {prompt + 1} and {most}")
            return self.max_length
        wanted = prompt + max(preset.max_new_tokens for preset in manifest.presets.values())
        return min(most, -(-wanted // LENGTH_STEP) * LENGTH_STEP)


def part_precision(part: GraphPart, precision: str) -> str:
    """What a part is built in when `precision` is asked for: a vision encoder has no 4-bit form, fp16 stands for it."""
    return "fp16" if part == "vision" and precision == "int4" else precision


def default_precision(manifest: Manifest) -> str:
    """`int4` for bundles whose decoder is, in blocks of any size, else `fp16`."""
    return "int4" if manifest.precision.get("decoder", "").startswith("int4") else "fp16"


def check_source(manifest: Manifest, parts: Sequence[GraphPart]) -> None:
    """Refuse by name what no engine is built of.

    Raises:
        R2GenError: `R2G-ENGINE-GRAPH`.
    """
    if "decoder" in parts and manifest.dialect == "ort":
        message = (
            "the decoder is in dialect 'ort': GroupQueryAttention and MatMulNBits, operators of ONNX Runtime that "
            "TensorRT does not take"
        )
        raise R2GenError("R2G-ENGINE-GRAPH", message, f"{decoder_graph.REEXPORT}, or --parts vision")
    if "vision" in parts and manifest.precision.get("vision") == "int8":
        message = "the vision encoder is int8 for ONNX Runtime, with activations rounded as they come"
        raise R2GenError(
            "R2G-ENGINE-GRAPH", message, "export it again: r2gen export ... --vision-precision fp32, or --parts decoder"
        )


def prepare(bundle: Path, manifest: Manifest, part: GraphPart, precision: str, limits: Limits) -> Graph:
    """The graph a part's engine is built of; its weights are read when it is written.

    Args:
        bundle: the folder.
        manifest: its manifest.
        part: `vision` or `decoder`.
        precision: what `part_precision` says.
        limits: fix the cache's length.

    Raises:
        R2GenError: `R2G-ENGINE-GRAPH`, `R2G-BUNDLE-GRAPH`, `R2G-CONFIG-VALUE`.
    """
    graph = Graph.load(bundle / SOURCES[part])
    if part == "decoder":
        return rewrite_decoder(graph, manifest.dialect, precision, limits.length(manifest))
    if precision == "fp32":
        make_single(graph)
    else:
        make_half(graph, ())
    return graph


def rewrite_decoder(graph: Graph, dialect: str, precision: str, length: int) -> Graph:
    """The decoder's graph for an engine.

    Args:
        graph: as it lies in the bundle; rewritten in place.
        dialect: `standard` or `trt`.
        precision: of the engine's weights.
        length: positions of the cache.
    """
    if dialect == "standard":
        decoder_graph.make_static(graph)
    decoder_graph.fix_length(graph, length)
    decoder_graph.drop_lengths(graph)
    dequantised(graph, keep=(INT4,) if precision == "int4" else ())
    if precision == "fp32":
        decoder_graph.decompose_attention(graph)
        make_single(graph)
        return graph
    if precision == "int4":
        filled(graph)
        quantised(graph)
    make_half(graph, [one.name for one in (*graph.inputs, *graph.outputs)])
    return graph


def profiles(graph: Graph, manifest: Manifest, part: GraphPart, limits: Limits) -> tuple[Profile, ...]:
    """Optimisation profiles: one for vision; for the decoder `prefill` and `decode`, in this order."""
    views = min(2, limits.max_views)
    if part == "vision":
        return (_profile(graph, "encode", {"views": (1, views, limits.max_views)}),)
    length = limits.length(manifest)
    prompt = manifest.prompt.length(manifest.dims.image_tokens)
    beams = min(limits.max_batch, manifest.presets[manifest.default_preset].num_beams)
    wide = min(1 + DRAFTED, length)
    rows = (1, beams, limits.max_batch)
    prefill = {"batch_size": rows, "sequence_length": (1, prompt, length), "num_logits": (1, 1, 1)}
    decode = {"batch_size": rows, "sequence_length": (1, 1, wide), "num_logits": (1, 1, wide)}
    return (_profile(graph, "prefill", prefill), _profile(graph, "decode", decode))


def _profile(graph: Graph, name: str, ranges: dict[str, tuple[int, int, int]]) -> Profile:
    inputs = {}
    for value in graph.inputs:
        sizes = []
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value"):
                sizes.append((dim.dim_value,) * 3)
            elif dim.dim_param in ranges:
                sizes.append(ranges[dim.dim_param])
            else:
                message = f"input {value.name} has an open dimension {dim.dim_param!r}, which r2gen does not know"
                raise R2GenError("R2G-ENGINE-GRAPH", message, "export the bundle again with this release of r2gen")
        if any(len(set(size)) > 1 for size in sizes) or _is_open(value):
            inputs[value.name] = Shapes(*(tuple(size[step] for size in sizes) for step in range(3)))
    return Profile(name, inputs)


def _is_open(value: object) -> bool:
    dims = value.type.tensor_type.shape.dim  # type: ignore[attr-defined]
    return any(not dim.HasField("dim_value") for dim in dims)
