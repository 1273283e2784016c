"""The decoder in plain ONNX operators, written by optimum with `inputs_embeds` in place of `input_ids`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from r2gen_export.exporting.quiet import quiet
from r2gen_export.system.interrupts import interrupt_later

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

OPSET: Final = 18
"""Plain decomposed operators; the highest opset at which TensorRT-RTX still builds the fp32 decoder."""


FILES: Final = ("model.onnx", "model.onnx.data", "config.json", "generation_config.json")
"""What the bundle's `decoder/` may hold."""


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
