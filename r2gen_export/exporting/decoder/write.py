"""`decoder/` of a bundle in a streamed dialect: graph, weights, and the LLM's configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from r2gen_export.bundle.external_data import ExternalData
from r2gen_export.exporting.decoder.dialects import DIALECTS
from r2gen_export.exporting.decoder.fill import lower
from r2gen_export.exporting.decoder.graph import GraphBuilder
from r2gen_export.exporting.decoder.skeleton import check_config, trace_skeleton
from r2gen_export.precision import PRECISIONS

if TYPE_CHECKING:
    from transformers import LlamaConfig

    from r2gen_export.exporting.decoder.weights import Weights


def write_streamed(
    config: LlamaConfig,
    weights: Weights,
    folder: Path,
    *,
    dialect: str,
    precision: str,
    head_precision: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Write `model.onnx`, `model.onnx.data` and `config.json`; memory needed: one weight matrix and its copies.

    Args:
        config: the LLM's.
        weights: its tensors.
        folder: the bundle's `decoder/`, made when it is not there.
        dialect: `ort` or `trt`.
        precision: one of `PRECISIONS`.
        head_precision: of the output layer, with the same activations; None: that of the layers.
        advance: called behind each decoder layer.

    Returns:
        The graph's opset.

    Raises:
        R2GenError: `R2G-MODEL-UNSUPPORTED`, `R2G-MODEL-MISSING`.
        OSError: when a file cannot be written.
    """
    check_config(config, dialect)
    folder.mkdir(parents=True, exist_ok=True)
    skeleton = trace_skeleton(config)
    chosen = DIALECTS[dialect]
    with ExternalData(folder / "model.onnx.data") as data:
        model = lower(
            skeleton,
            config,
            weights,
            GraphBuilder(data, half=PRECISIONS[precision].half),
            chosen,
            precision=precision,
            head_precision=head_precision or precision,
            advance=advance,
        )
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    clean = type(config).from_dict({**config.to_dict(), "_name_or_path": ""})
    clean.architectures = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(clean.to_json_string(), encoding="utf-8")
    return chosen.opsets[""]
