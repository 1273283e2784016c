"""The parity gate of a decoder that does not fit into memory: one layer of PyTorch, one of ONNX, compared, dropped.

Each layer is run on the hidden states PyTorch's chain of layers gives it: once in PyTorch with the weights as they are,
once with the weights rounded as the bundle stores them, once in ONNX Runtime. ONNX's own chain runs beside, and the
two chains meet in the logits. Tokens are not compared: that would take the whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper
from torch.nn import functional as F

from r2gen_export.bundle import ParityCheck
from r2gen_export.exporting.decoder.dialects import TOTAL
from r2gen_export.exporting.decoder.fill import HEAD
from r2gen_export.exporting.decoder.skeleton import head_dim
from r2gen_export.exporting.decoder.weights import ModuleWeights
from r2gen_export.exporting.parity.metrics import logits_check, quality_check
from r2gen_export.exporting.parity.rounded_weights import round_weights
from r2gen_export.precision import PRECISIONS
from r2gen_export.runtime.backends.ort_session import session_options

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

Floats = NDArray[np.float32]

LAYERS: Final = "decoder layers, one by one"

FINAL_NORM: Final = "model.norm.weight"


@dataclass(frozen=True)
class Layered:
    """What `compare_layers` saw. `trial`: logits [2, vocab] of the last two positions of its `trial`."""

    checks: tuple[ParityCheck, ...]
    trial: Floats | None = None


def compare_layers(
    model: LlamaForCausalLM,
    graph: Path,
    prompts: Floats,
    *,
    onnx_prompts: Floats | None = None,
    trial: Floats | None = None,
    precision: str,
    head_precision: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Layered:
    """Run prompts [N, S, d] through both decoders, layer by layer.

    Args:
        model: the LLM, plain or wrapped by peft, of any float type, its parameters possibly mapped from files.
        graph: `decoder/model.onnx` in the `ort` or `trt` dialect.
        prompts: float32.
        onnx_prompts: what ONNX's chain starts from, None: the same.
        trial: embeddings [1, T, d] that go through ONNX's layers alone, for reference logits.
        precision: of the graph's layers.
        head_precision: of its output layer, None: the same.
        advance: called behind each layer.

    Returns:
        Three checks: the worst layer; the logits of all N * S positions on equal input; how far the two chains' logits
        are apart, which is a gate in fp32 from equal prompts, else recorded.
    """
    config = model.config
    weights = ModuleWeights(model)
    proto = onnx.load(graph, load_external_data=False)
    ends = _layer_inputs(proto, config.num_hidden_layers)
    torch_chain, onnx_chain = prompts, prompts if onnx_prompts is None else onnx_prompts
    worst = _Worst(PRECISIONS[precision].layer_tolerance)
    for index, (start, end) in enumerate(pairwise(ends)):
        wanted, reachable = _torch_layer(config, weights, index, torch_chain, precision)
        part = _Part(proto, graph, config, layer=index, start=start, end=end)
        worst.add(index, part.run(torch_chain), reachable, torch_chain)
        onnx_chain = part.run(onnx_chain)
        trial = None if trial is None else part.run(trial)
        torch_chain = wanted
        advance()
    head = _Part(proto, graph, config, layer=None, start=ends[-1], end="logits")
    # Before the larger logits of the probe are there, and without the other positions'.
    last = None if trial is None else head.run(trial)[0, -2:].copy()
    with torch.no_grad():
        wanted, reachable = _torch_head(config, weights, torch_chain, head_precision or precision, precision)
    local = head.run(torch_chain)
    checks = (worst.check(), logits_check("output layer", "decode", local, reachable, [head_precision or precision]))
    chained = head.run(onnx_chain)
    if {precision, head_precision or precision} == {"fp32"} and onnx_prompts is None:
        return Layered((*checks, logits_check("logits, all layers", "decode", chained, wanted)), last)
    return Layered((*checks, quality_check(chained, wanted)), last)


@dataclass
class _Worst:
    """The layer with the largest relative difference so far."""

    tolerance: float
    observed: float = 0.0
    layer: int = 0
    count: int = 0

    def add(self, layer: int, found: Floats, wanted: Floats, given: Floats) -> None:
        self.count += 1
        scale = max(float(np.abs(wanted - given).max()), 1e-6)
        difference = float(np.abs(found - wanted).max()) / scale
        if not np.isfinite(difference) or difference > self.observed:
            self.observed, self.layer = (difference if np.isfinite(difference) else float("inf")), layer

    def check(self) -> ParityCheck:
        detail = f"worst of {self.count}: layer {self.layer}; max abs per largest change"
        passed = self.observed <= self.tolerance
        return ParityCheck(LAYERS, passed, self.observed, self.tolerance, detail, "decode")


class _Part:
    """A run of nodes of the decoder from hidden states to hidden states or logits, as a session of its own."""

    def __init__(
        self, proto: onnx.ModelProto, path: Path, config: LlamaConfig, *, layer: int | None, start: str, end: str
    ) -> None:
        self._start, self._end = start, end
        self._config, self._layer = config, layer
        kinds = {value.name: value.type.tensor_type.elem_type for value in proto.graph.input}
        kind = kinds["inputs_embeds"]
        self._dtype: Any = helper.tensor_dtype_to_np_dtype(kind)
        nodes = _between(proto, start, end)
        needed = {name for node in nodes for name in node.input}
        inputs = [value for value in proto.graph.input if value.name in needed and value.name != start]
        inputs.append(helper.make_tensor_value_info(start, kind, ["batch", "sequence", config.hidden_size]))
        weights = [one for one in proto.graph.initializer if one.name in needed]
        output = helper.make_tensor_value_info(end, kind, None)
        whole = helper.make_graph(nodes, "part", inputs, [output], weights)
        part = helper.make_model(whole, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)
        options = session_options()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        self._session = onnxruntime.InferenceSession(
            part.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {value.name for value in inputs}

    def run(self, hidden: Floats) -> Floats:
        """[N, S, d] float32 -> the part's output in float32."""
        rows, length = hidden.shape[:2]
        empty = np.zeros((rows, self._config.num_key_value_heads, length, head_dim(self._config)), self._dtype)
        feeds: dict[str, Any] = {
            "position_ids": np.tile(np.arange(length), (rows, 1)),
            "logits_to_keep": np.arange(length),
            TOTAL: np.array(length, np.int32),
            "past_key_values.0.key": empty,  # whose length the mask of every layer is made for
            f"past_key_values.{self._layer}.key": empty,
            f"past_key_values.{self._layer}.value": empty,
            self._start: hidden.astype(self._dtype),
        }
        found = self._session.run([self._end], {name: feeds[name] for name in self._inputs})[0]
        return np.asarray(found, np.float32)


def _layer_inputs(proto: onnx.ModelProto, layers: int) -> list[str]:
    """The residual stream in front of each layer, and behind the last one: what their first norms read."""
    reads = {node.input[1]: node.input[0] for node in proto.graph.node if node.op_type == "RMSNormalization"}
    return [*(reads[f"model.layers.{index}.input_layernorm.weight"] for index in range(layers)), reads[FINAL_NORM]]


def _between(proto: onnx.ModelProto, start: str, end: str) -> list[onnx.NodeProto]:
    """The nodes `end` needs, `start` being given, in the graph's order."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    wanted, found = [end], {}
    while wanted:
        name = wanted.pop()
        node = makers.get(name)
        if name != start and node is not None and node.name not in found:
            found[node.name] = node
            wanted.extend(node.input)
    return [node for node in proto.graph.node if node.name in found]


def _torch_layer(
    config: LlamaConfig, weights: ModuleWeights, index: int, hidden: Floats, precision: str
) -> tuple[Floats, Floats]:
    """One decoder layer in float32 on [N, S, d]: with the weights as they are, and rounded."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    with torch.device("meta"):
        layer = LlamaDecoderLayer(config, index)
    layer = layer.to_empty(device="cpu").float().eval()
    states = torch.from_numpy(np.ascontiguousarray(hidden))
    positions = torch.arange(hidden.shape[1])[None]
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(weights.read(f"model.layers.{index}.{name}"))
        tables = LlamaRotaryEmbedding(config)(states, positions)

        def run() -> Floats:
            # No mask: with more than one position torch's own attention is then causal.
            output: Any = layer(states, attention_mask=None, position_ids=positions, position_embeddings=tables)
            found: Floats = output.numpy()
            return found

        wanted = run()
        if precision == "fp32":
            return wanted, wanted
        round_weights(layer, precision)
        return wanted, run()


def _torch_head(
    config: LlamaConfig, weights: ModuleWeights, hidden: Floats, head_precision: str, precision: str
) -> tuple[Floats, Floats]:
    """Final norm and output layer in float32 on [N, S, d]: logits [N, S, vocab] as they are, and rounded."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
    norm.weight.copy_(weights.read(FINAL_NORM))
    states = torch.from_numpy(np.ascontiguousarray(hidden))
    holder = torch.nn.Module()
    holder.add_module("norm", norm)
    head = torch.nn.Linear(config.hidden_size, config.vocab_size, bias=False, device="meta").to_empty(device="cpu")
    head.weight.copy_(weights.read(f"{HEAD}.weight"))
    holder.add_module(HEAD, head)
    wanted: Floats = F.linear(norm(states), head.weight).numpy()
    if precision == head_precision == "fp32":
        return wanted, wanted
    round_weights(holder, precision, head_precision)
    return wanted, F.linear(norm(states), head.weight).numpy()
