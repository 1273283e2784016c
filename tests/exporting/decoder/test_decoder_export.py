"""The streamed dialects: every kind of LLaMA at every precision against PyTorch, in bounded memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from r2gen_export.errors import R2GenError
from r2gen_export.exporting.decoder import dialects
from r2gen_export.exporting.decoder.dialects import TOTAL
from r2gen_export.exporting.decoder.export import write_decoder
from r2gen_export.exporting.decoder.quantize import BlockWeights, dequantize, quantize
from r2gen_export.exporting.decoder.skeleton import check_config, default_dialect
from r2gen_export.exporting.parity import layer_by_layer as layerwise
from r2gen_export.exporting.parity.layer_by_layer import compare_layers
from r2gen_export.exporting.parity.rounded_weights import round_weights
from r2gen_export.precision import PRECISIONS
from tests.helpers.llama import make_llama
from tests.helpers.torch_decoder import make_prompts

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
KINDS = {
    "grouped heads, biases": {"attention_bias": True, "mlp_bias": True},
    "one key head per head": {"num_key_value_heads": 4},
    "llama 3": {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}},
    "linear rope, wide heads": {"head_dim": 32, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "tied embeddings": {"tie_word_embeddings": True},
    "blocks that do not fill up": {"hidden_size": 80, "head_dim": 16, "intermediate_size": 100},
}
EVERY_PRECISION = ("grouped heads, biases", "blocks that do not fill up")
CASES = [(kind, name) for kind in KINDS for name in PRECISIONS if name in ("fp32", "int4") or kind in EVERY_PRECISION]
"""A matrix is stored in the same way whatever the attention around it: where its shape or a bias may matter, in all."""

TOLERANCE = {name: 1e-2 if entry.half else 1e-5 for name, entry in PRECISIONS.items()}
"""Per unit of the largest logit, from PyTorch with the same rounded weights, activations not rounded to 8 bits."""


def run_graph(path: Path, config: LlamaConfig, embeds: np.ndarray, parts: list[int]) -> np.ndarray:
    """Logits of every position, the graph fed `parts` positions at a time through a cache of 20."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")  # in `ort`, an attribute
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    types = {one.name: one.type for one in session.get_inputs()}
    kind = np.float16 if types["inputs_embeds"] == "tensor(float16)" else np.float32
    names = [one.name for one in session.get_outputs()]
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    cache = {
        name: np.zeros((1, config.num_key_value_heads, 20, head_dim), kind) for name in types if name.startswith("past")
    }
    found, start = [], 0
    for size in parts:
        feeds = {
            "inputs_embeds": embeds[:, start : start + size].astype(kind),
            "position_ids": np.arange(start, start + size)[None],
            "logits_to_keep": np.arange(size),
            **({TOTAL: np.array(start + size, np.int32)} if TOTAL in types else {}),
            **cache,
        }
        given = dict(zip(names, session.run(None, feeds), strict=True))
        found.append(given["logits"].astype(np.float32))
        cache = {name: given[name.replace("past_key_values", "present")] for name in cache}
        start += size
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize(("kind", "precision"), CASES)
@pytest.mark.parametrize("dialect", ["ort", "trt"])
def test_graph_computes_what_pytorch_computes_with_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, dialect: str, precision: str
) -> None:
    monkeypatch.setattr(dialects, "ACCURACY_LEVEL", 0)
    model = make_llama(**KINDS[kind])
    embeds = make_prompts(np.random.default_rng(0), 1, 11, model.config.hidden_size)
    layers: list[None] = []
    write_decoder(model, tmp_path, dialect=dialect, precision=precision, advance=lambda: layers.append(None))
    assert len(layers) == 2
    if dialect == "trt":
        onnx.checker.check_model(str(tmp_path / "model.onnx"))
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert "r2gen" not in {node.domain for node in graph.graph.node}
    values = [one.type.tensor_type.elem_type for one in (*graph.graph.input, *graph.graph.output)]
    floats = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
    expected = onnx.TensorProto.FLOAT16 if PRECISIONS[precision].half else onnx.TensorProto.FLOAT
    assert floats & {*values, *(one.data_type for one in graph.graph.initializer)} == {expected}
    assert str(tmp_path).encode() not in (tmp_path / "model.onnx").read_bytes()
    round_weights(model, precision)
    with torch.no_grad():
        wanted = model(inputs_embeds=torch.from_numpy(embeds)).logits.numpy()
    found = run_graph(tmp_path / "model.onnx", model.config, embeds, [5, 1, 3, 2])
    assert np.abs(found - wanted).max() <= TOLERANCE[precision] * np.abs(wanted).max()


def test_lora_is_merged_on_the_way(tmp_path: Path) -> None:
    model = make_llama()
    adapted = get_peft_model(model, LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3)
    embeds = make_prompts(np.random.default_rng(0), 1, 11, 64)
    write_decoder(adapted, tmp_path, dialect="ort", precision="fp32")
    with torch.no_grad():
        wanted = adapted.eval()(inputs_embeds=torch.from_numpy(embeds)).logits.numpy()
        plain = adapted.merge_and_unload()
    assert np.abs(run_graph(tmp_path / "model.onnx", model.config, embeds, [11]) - wanted).max() < 1e-4
    assert isinstance(plain, LlamaForCausalLM)


@pytest.mark.parametrize(("bits", "size"), sorted({one.blocks for one in PRECISIONS.values() if one.blocks}))
def test_block_quantisation(bits: int, size: int) -> None:
    """Against the definition: the largest value of a block is met exactly, no other is off by more than half a step."""
    torch.manual_seed(bits)
    weight = torch.randn(7, 150) * torch.rand(7, 1) * 10
    weight[2] = 0
    weight[3, :size] = -5.0
    found = dequantize(quantize(weight, bits, size))
    assert found.shape == (7, 150)
    half = 2 ** (bits - 1)
    for row, values in zip(found, weight.numpy(), strict=True):
        for start in range(0, 150, size):
            block, mine = values[start : start + size], row[start : start + size]
            largest = block[np.abs(block).argmax()]
            step = abs(largest) / half
            assert mine[np.abs(block).argmax()] == pytest.approx(largest, rel=1e-6)
            # One value may be cut off at the other end of the range, which has one code less.
            assert np.abs(mine - block).max() <= step * 1.001
            inside = np.abs(block) <= step * (half - 1)
            assert (np.abs(mine - block)[inside] <= step * 0.5001).all()
    again = dequantize(quantize(torch.from_numpy(found), bits, size))
    np.testing.assert_allclose(again, found, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_scaling 'dynamic'"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    model = make_llama(**changes)
    for dialect in ("ort", "trt"):
        with pytest.raises(R2GenError, match="R2G-MODEL-UNSUPPORTED") as caught:
            write_decoder(model, tmp_path / dialect, dialect=dialect, precision="int4")
        assert words in caught.value.message
        assert "--dialect standard" in caught.value.fix
    assert default_dialect(model.config) == "standard"
    write_decoder(model, tmp_path / "standard", dialect="standard", precision="fp32")
    assert (tmp_path / "standard/model.onnx").exists()


def test_heads_of_other_sizes_go_to_the_other_dialect() -> None:
    config = make_llama(head_dim=24).config
    assert default_dialect(config) == "trt"
    with pytest.raises(R2GenError, match=r"head_dim 24.*multiples of 16"):
        check_config(config, "ort")
    check_config(config, "trt")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dialect", ["ort", "trt"])
def test_layer_by_layer_gate(tmp_path: Path, dialect: str, precision: str) -> None:
    model = make_llama(attention_bias=True)
    prompts = make_prompts(np.random.default_rng(1), 3, 12, 64)
    write_decoder(model, tmp_path, dialect=dialect, precision=precision)
    found = compare_layers(model, tmp_path / "model.onnx", prompts, precision=precision).checks
    assert [check.passed for check in found] == [True] * 3
    whole = run_graph(tmp_path / "model.onnx", model.config, prompts[:1], [12])
    with torch.no_grad():
        wanted = model(inputs_embeds=torch.from_numpy(prompts)).logits.numpy()
    if precision == "fp32":
        assert np.abs(whole - wanted[:1]).max() < 1e-4
        return
    assert found[-1].metrics["positions"] == 36
    assert not found[-1].gate
    assert found[-1].metrics["kl_mean"] > 1e-8


def test_projections_of_one_input_are_one_product_where_that_is_faster(tmp_path: Path) -> None:
    model = make_llama(attention_bias=True)
    products = {}
    for dialect in ("ort", "trt"):
        write_decoder(model, tmp_path / dialect, dialect=dialect, precision="fp32")
        nodes = onnx.load(tmp_path / dialect / "model.onnx", load_external_data=False).graph.node
        products[dialect] = [node.input[1] for node in nodes if node.op_type == "MatMul"]
    layers = model.config.num_hidden_layers
    assert [len(products[dialect]) for dialect in ("ort", "trt")] == [4 * layers + 1, 7 * layers + 1]
    first = [name.removeprefix("model.layers.0.") for name in products["ort"][:4]]
    assert first == [
        "self_attn.q_k_v_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.gate_up_proj.weight",
        "mlp.down_proj.weight",
    ]


@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj", "model.layers.0.self_attn.k_proj", "lm_head"])
def test_layer_by_layer_gate_finds_a_wrong_weight(tmp_path: Path, name: str) -> None:
    """One matrix is changed between the export and the gate."""
    model = make_llama()
    write_decoder(model, tmp_path, dialect="ort", precision="int4")
    model.get_submodule(name).weight.data[:, :8] *= -1
    prompts = make_prompts(np.random.default_rng(1), 2, 12, 64)
    found = compare_layers(model, tmp_path / "model.onnx", prompts, precision="int4").checks
    failed = [check for check in found if not check.passed]
    assert [check.name for check in failed] == ["output layer" if name == "lm_head" else layerwise.LAYERS]
    if name != "lm_head":
        assert f"layer {name.split('.')[2]}" in failed[0].detail


@pytest.mark.parametrize("factor", [1e-6, 1e8], ids=["underflow", "overflow"])
def test_layer_by_layer_gate_finds_scales_float16_cannot_hold(tmp_path: Path, factor: float) -> None:
    """Values times `factor`, projected back by its inverse: the same model, which float32 scales can express."""
    model = make_llama()
    attention = model.model.layers[1].self_attn
    attention.v_proj.weight.data *= factor
    attention.o_proj.weight.data /= factor
    prompts = make_prompts(np.random.default_rng(1), 2, 12, 64)
    passed = {}
    for precision in ("int8", "int8-f16"):
        write_decoder(model, tmp_path / precision, dialect="ort", precision=precision)
        checks = compare_layers(model, tmp_path / precision / "model.onnx", prompts, precision=precision).checks
        passed[precision] = [check.passed for check in checks]
    assert all(passed["int8"])
    assert not passed["int8-f16"][0]


def test_scales_are_rounded_to_float16_where_it_holds_them() -> None:
    """The values by hand: a normal scale loses bits, one below and one above the range stays as it is."""
    scales = np.array([[0.1, 1e-9, 1e6]], np.float32)
    codes = np.full((1, 3, 32), 128 + 64, np.uint8)
    weights = BlockWeights(codes, scales, bits=8, in_features=96)
    assert dequantize(weights)[0, ::32] == pytest.approx([6.4, 6.4e-8, 6.4e7], rel=1e-6)
    rounded = dequantize(weights, half=True)[0, ::32]
    assert rounded == pytest.approx([64 * float(np.float16(0.1)), 6.4e-8, 6.4e7], rel=1e-6)
    assert rounded[0] != pytest.approx(6.4, rel=1e-5)


LIMITED = """
import resource, sys
from pathlib import Path
from r2gen_export.exporting.decoder.export import write_decoder
from r2gen_export.exporting.estimate import PeakMemory, anonymous_memory
from r2gen_export.exporting.parity.layer_by_layer import compare_layers
from r2gen_export.training.hub import load_llm, stored_dtype
import numpy as np
import onnxruntime
from optimum.exporters.onnx import onnx_export_from_model
llm, out = sys.argv[1:3]
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
mapped = sum(path.stat().st_size for path in Path(llm).glob("*.safetensors"))
room = int(float(sys.argv[3]) * 2**20)
resource.setrlimit(resource.RLIMIT_AS, (used + mapped + room, used + mapped + room))
before = anonymous_memory()
with PeakMemory(0.002) as memory:
    model = load_llm(llm, stored_dtype(llm) if sys.argv[4] == "mapped" else __import__("torch").float32)
    write_decoder(model, Path(out), dialect="ort", precision="int4")
    prompts = np.random.default_rng(0).normal(0, 1, (2, 12, 1024)).astype(np.float32)
    checks = compare_layers(model, Path(out) / "model.onnx", prompts, trial=prompts[:1], precision="int4").checks
assert all(check.passed for check in checks), checks
print(mapped, memory.peak - before)
"""


@pytest.mark.slow
def test_export_and_gate_stay_within_an_address_space_too_small_for_the_model(tmp_path: Path) -> None:
    """960 MB of float16 in eight files: exported and checked in what a float32 copy of them would not fit into."""
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=28, num_attention_heads=16, vocab_size=4000,
        num_key_value_heads=16, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).half().save_pretrained(tmp_path / "llm", max_shard_size="120MB")
    assert len(list((tmp_path / "llm").glob("*.safetensors"))) >= 4
    run = [sys.executable, "-c", LIMITED, str(tmp_path / "llm"), str(tmp_path / "decoder"), "900"]
    # Each thread's own heap reserves 64 MB of addresses it does not use; one heap for all makes the limit mean memory.
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([*run, "mapped"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    mapped, peak = map(int, done.stdout.split())
    assert mapped > 900e6
    assert peak < 0.4 * mapped
    copied = subprocess.run([*run, "copied"], capture_output=True, text=True, check=False, env=environment)
    assert copied.returncode != 0, "the limit would not have noticed a copy of the model"
