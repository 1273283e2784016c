"""decoder/model.onnx: the LLaMA through optimum, with `inputs_embeds` in place of `input_ids`, and its KV cache.

Inputs `inputs_embeds` [B, S, d], `attention_mask` int64 [B, P + S], `position_ids` int64 [B, S],
`past_key_values.N.{key,value}` [B, kv_heads, P, head_dim]; outputs `logits` [B, S, vocab],
`present.N.{key,value}` [B, kv_heads, P + S, head_dim]. P may be 0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from r2gen_export.errors import R2GenError
from r2gen_export.exporting.quiet import quiet
from r2gen_export.precision import PRECISIONS
from r2gen_export.system.interrupts import interrupt_later

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

OPSET: Final = 18
"""Plain decomposed operators; the highest opset at which TensorRT-RTX still builds the fp32 decoder."""

FILES: Final = ("model.onnx", "model.onnx.data", "config.json", "generation_config.json")
"""What the bundle's `decoder/` may hold."""


def dialects() -> dict[str, tuple[str, ...]]:
    """The dialects, and the precisions each can be written in."""
    from r2gen_export.exporting.decoder.dialects import DIALECTS

    return {"standard": ("fp32",), **dict.fromkeys(DIALECTS, tuple(PRECISIONS))}


def check_variant(dialect: str, precision: str, head_precision: str | None = None) -> None:
    """Refuse a decoder that cannot be written.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`; the message names what there is.
    """
    choices = dialects()
    known = choices.get(dialect, ())
    if precision not in known or (head_precision or precision) not in known:
        listed = "; ".join(f"--dialect {one} --precision {'|'.join(each)}" for one, each in sorted(choices.items()))
        message = f"the decoder cannot be written in dialect {dialect!r} with precision {precision!r}"
        raise R2GenError("R2G-CONFIG-VALUE", message, f"choose from: {listed}")
    half = PRECISIONS[precision].half
    if head_precision is not None and PRECISIONS[head_precision].half != half:
        message = f"precision {precision} with an output layer in {head_precision}: the two use other activations"
        alike = ", ".join(name for name, entry in PRECISIONS.items() if entry.half == half)
        raise R2GenError("R2G-CONFIG-VALUE", message, f"give --head-precision one of {alike}")


def write_decoder(
    model: LlamaForCausalLM,
    folder: Path,
    *,
    dialect: str,
    precision: str,
    head_precision: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> int:
    """Write the bundle's `decoder/`.

    Args:
        model: the language model; for `standard` in float32 with its LoRA merged, else of any float type, its
            parameters possibly mapped from files.
        folder: made when it is not there.
        dialect: a key of `dialects()`.
        precision: one of its values.
        head_precision: of the output layer, None: that of the other layers.
        advance: called behind each decoder layer.

    Returns:
        The graph's opset.

    Raises:
        R2GenError: `R2G-MODEL-UNSUPPORTED`.
        OSError: when a file cannot be written.
    """
    if dialect == "standard":
        write_standard_fp32(model, folder)
        return OPSET
    from r2gen_export.exporting.decoder.weights import ModuleWeights
    from r2gen_export.exporting.decoder.write import write_streamed

    opset = write_streamed(
        model.config,
        ModuleWeights(model),
        folder,
        dialect=dialect,
        precision=precision,
        head_precision=head_precision,
        advance=advance,
    )
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    return opset


def write_standard_fp32(model: LlamaForCausalLM, folder: Path) -> None:
    """Write `model.onnx`, `config.json` and `generation_config.json` into `folder`, in plain ONNX operators.

    Weights are inside `model.onnx` below 2 GB, else in `model.onnx.data`. LoRA weights must be merged already.

    Args:
        model: the language model in float32 on the CPU.
        folder: the bundle's `decoder/`.

    Raises:
        OSError: when a file cannot be written.
    """
    # optimum would otherwise look for a tokenizer under this name and copy it beside the graph.
    model.config._name_or_path = ""
    with interrupt_later(), quiet():
        from optimum.exporters.onnx import onnx_export_from_model

        task = "text-generation"
        graph = embeds_config_class()(model.config, task=task, use_past=True, use_past_in_inputs=True)
        onnx_export_from_model(
            model,
            folder,
            opset=OPSET,
            task=f"{task}-with-past",
            custom_onnx_configs={"model": graph},
            do_validation=False,  # the parity gate compares more, and fails where optimum only warns
        )
    _rename_external_data(folder / "model.onnx")
    for extra in folder.iterdir():
        if extra.name not in FILES:
            extra.unlink()


def embeds_config_class() -> Any:
    """optimum's LLaMA config with `inputs_embeds` for `input_ids` (optimum issue 880). A function: imports torch."""
    from optimum.exporters.onnx.model_configs import LlamaOnnxConfig
    from optimum.utils import DummyTextInputGenerator

    class EmbedsGenerator(DummyTextInputGenerator):
        SUPPORTED_INPUT_NAMES = ("inputs_embeds",)

        def generate(
            self, input_name: str, framework: str = "pt", int_dtype: str = "int64", float_dtype: str = "fp32"
        ) -> Any:
            shape = [self.batch_size, self.sequence_length, self.normalized_config.hidden_size]
            return self.random_float_tensor(shape, framework=framework, dtype=float_dtype)

    class EmbedsConfig(LlamaOnnxConfig):
        DUMMY_INPUT_GENERATOR_CLASSES = (EmbedsGenerator, *LlamaOnnxConfig.DUMMY_INPUT_GENERATOR_CLASSES)
        PAD_ATTENTION_MASK_TO_PAST = False  # done below: optimum's own padding reads `input_ids`

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            renamed = {"input_ids": "inputs_embeds"}
            return {renamed.get(name, name): axes for name, axes in super().inputs.items()}

        def generate_dummy_inputs(self, framework: str = "pt", **shapes: Any) -> dict[str, Any]:
            inputs = super().generate_dummy_inputs(framework=framework, **shapes)
            length = inputs["inputs_embeds"].shape[1] + inputs["past_key_values"][0][0].shape[-2]
            inputs["attention_mask"] = EmbedsGenerator.pad_input_on_dim(
                inputs["attention_mask"], desired_length=length, dim=1
            )
            return inputs

    return EmbedsConfig


def _rename_external_data(graph: Path) -> None:
    """optimum writes `model.onnx_data`; the bundle has `model.onnx.data`."""
    written = graph.with_name(graph.name + "_data")
    if not written.exists():
        return
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

    name = graph.name + ".data"
    Path(written).replace(graph.with_name(name))
    proto = onnx.load(graph, load_external_data=False)
    for tensor in _get_all_tensors(proto):
        if uses_external_data(tensor) and ExternalDataInfo(tensor).location == written.name:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = name
    graph.write_bytes(proto.SerializeToString())
