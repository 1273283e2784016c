"""ONNX Runtime sessions on graphs exported from a tiny LLaMA and a tiny Swin, against torch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from r2gen_export.bundle import Dims
from r2gen_export.decoding import Decoding
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.decoder.standard import write_standard_fp32
from r2gen_export.exporting.decoder.weights import ModuleWeights
from r2gen_export.exporting.decoder.write import write_streamed
from r2gen_export.exporting.vision import export_vision
from r2gen_export.runtime.backends import ort_providers as providers
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.gpu_kv_cache import DeviceMemory, RowMover
from r2gen_export.runtime.backends.openvino_decoder import OpenVinoDecoder, halves
from r2gen_export.runtime.backends.ort_decoder import DecoderSession
from r2gen_export.runtime.backends.ort_providers import choose_providers
from r2gen_export.runtime.backends.ort_session import open_session
from r2gen_export.runtime.backends.ort_vision import VisionSession
from r2gen_export.runtime.decoding.generate import generate
from r2gen_export.runtime.drafting.drafter import Drafter
from r2gen_export.runtime.drafting.ngrams import SortedNgrams
from r2gen_export.training.model import ModelConfig, R2GenGPT
from tests.helpers.tiny import make_tiny_llm, make_tiny_vision
from tests.helpers.torch_decoder import hf_generate, make_prompts

CPU = {"providers": ["CPUExecutionProvider"], "threads": 1}
DIMS = Dims(image_tokens=16, d_llm=32, vocab_size=120, num_layers=2, num_kv_heads=2, head_dim=16, max_positions=256)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def llm(folder):
    """LLaMA with grouped key/value heads (4 heads, 2 of keys), and its graph in folder/model.onnx."""
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(make_tiny_llm(folder / "llm")).eval()
    write_standard_fp32(model, folder / "decoder")
    np.save(folder / "embed_tokens.npy", model.get_input_embeddings().weight.detach().numpy())
    return model


@pytest.fixture(scope="module")
def graph(folder, llm):
    return folder / "decoder" / "model.onnx"


@pytest.fixture(scope="module", params=["standard", "ort", "trt", "openvino"])
def decoder(request, folder, llm, graph):
    """The same LLaMA in every dialect. Heads of 16 values: `GroupQueryAttention` takes no smaller ones."""
    if request.param == "standard":
        return DecoderSession(graph, DIMS, **CPU)
    written = folder / request.param
    dialect = "trt" if request.param == "trt" else "ort"
    write_streamed(llm.config, ModuleWeights(llm), written, dialect=dialect, precision="fp32")
    if request.param == "openvino":
        return OpenVinoDecoder(written / "model.onnx", DIMS, threads=CPU["threads"])
    return DecoderSession(written / "model.onnx", DIMS, **CPU)


@pytest.fixture(scope="module")
def table(folder, llm):
    return EmbeddingTable(folder / "embed_tokens.npy")


def test_a_prompt_of_a_little_more_than_a_tile_gives_torchs_logits(decoder, table, llm):
    """OpenVINO reads it in two passes; here two prompts of 41 positions make 82 rows."""
    prompts = make_prompts(np.random.default_rng(9), 2, 41, 32)
    state = decoder.prefill(prompts, 4)
    ids = np.array([[5], [7]])
    first = state.logits.copy()
    state.decode(table.lookup(ids))
    whole = torch.cat([torch.from_numpy(prompts), llm.get_input_embeddings()(torch.from_numpy(ids))], dim=1)
    with torch.no_grad():
        wanted = llm(inputs_embeds=whole).logits[:, 40:].numpy()
    np.testing.assert_allclose(first, wanted[:, 0], atol=1e-4)
    np.testing.assert_allclose(state.logits, wanted[:, 1], atol=1e-4)


@pytest.mark.parametrize(
    ("batch", "size", "parts"),
    [
        (1, 64, [64]),
        (1, 65, [33, 32]),
        (1, 79, [40, 39]),
        (1, 96, [48, 48]),
        (1, 97, [97]),
        (2, 40, [40]),
        (2, 65, [33, 32]),
        (80, 1, [1]),
    ],
)
def test_prompts_in_passes(batch: int, size: int, parts: list[int]) -> None:
    prompt = np.arange(batch * size, dtype=np.float32).reshape(batch, size, 1)
    found = halves(prompt)
    assert [one.shape[1] for one in found] == parts
    np.testing.assert_array_equal(np.concatenate(found, axis=1), prompt)


def test_prefill_and_decode_give_torchs_logits(decoder, table, llm):
    prompts = make_prompts(np.random.default_rng(0), 3, 7, 32)
    ids = np.array([[5, 9, 100], [7, 7, 7], [0, 1, 119]])
    state = decoder.prefill(prompts, 8)
    found = [state.logits.copy()]
    for step in range(3):
        state.decode(table.lookup(ids[:, step : step + 1]))
        found.append(state.logits.copy())
    whole = torch.cat([torch.from_numpy(prompts), llm.get_input_embeddings()(torch.from_numpy(ids))], dim=1)
    with torch.no_grad():
        wanted = llm(inputs_embeds=whole).logits[:, 6:].numpy()
    assert found[0].dtype == np.float32
    np.testing.assert_allclose(np.stack(found, axis=1), wanted, atol=1e-4)


def test_positions_of_one_pass_are_those_of_many_and_can_be_taken_back(decoder, table):
    prompt = make_prompts(np.random.default_rng(5), 1, 6, 32)
    ids = [4, 90, 7, 7, 30]
    stepwise, at_once = decoder.prefill(prompt, 12), decoder.prefill(prompt, 12)
    wanted = []
    for token in ids:
        stepwise.decode(table.lookup(np.array([[token]])))
        wanted.append(stepwise.logits[0].copy())
    at_once.decode(table.lookup(np.array([[ids[0]]])))
    wrong = at_once.extend(table.lookup(np.array([[ids[1], 1, 2, 3]])))
    np.testing.assert_allclose(wrong[0, 0], wanted[1], atol=1e-5)
    at_once.rollback(3)
    found = at_once.extend(table.lookup(np.array([ids[2:]])))
    np.testing.assert_allclose(found[0], wanted[2:], atol=1e-5)
    np.testing.assert_allclose(at_once.logits[0], wanted[-1], atol=1e-5)


def test_a_shared_prefix_changes_nothing(decoder, folder):
    prompts = make_prompts(np.random.default_rng(6), 3, 9, 32)
    prompts[1, :4] = prompts[0, :4]
    wanted = decoder.prefill(prompts, 4).logits.copy()
    decoder.share_prefix(prompts[:1, :4])
    for _ in range(2):
        np.testing.assert_allclose(decoder.prefill(prompts, 4).logits, wanted, atol=1e-5)
    shorter = prompts[:1, :4]
    whole = decoder.prefill(shorter, 4).logits.copy()
    decoder.share_prefix(prompts[2:, :2])
    np.testing.assert_allclose(decoder.prefill(shorter, 4).logits, whole, atol=1e-5)


def test_a_cache_is_used_again_without_a_trace_of_the_last_report(decoder, table):
    """Longer, wider and poisoned reports leave their cache to the next one."""
    rng = np.random.default_rng(7)
    prompt = make_prompts(rng, 1, 5, 32)
    token = table.lookup(np.array([[9]]))

    def run():
        state = decoder.prefill(prompt, 2)
        state.decode(token)
        return state.logits.copy()

    wanted = run()
    wide = decoder.prefill(make_prompts(rng, 4, 60, 32), 40)
    wide.reorder(np.array([3, 3, 1, 0, 2, 2]))
    del wide
    np.testing.assert_array_equal(run(), wanted)
    with pytest.raises(R2GenError, match="R2G-GENERATE-NONFINITE"):
        decoder.prefill(np.full((2, 30, 32), np.nan, np.float32), 2)
    np.testing.assert_array_equal(run(), wanted)
    with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE"):
        decoder.prefill(prompt, 252)


@pytest.mark.parametrize("dialect", ["ort", "trt", "standard"])
def test_what_a_gpu_does_computes_the_same_in_host_memory(folder, llm, graph, table, dialect):
    """Passes, moves of rows and growth as on a GPU, with the CPU's kernels. `tests/gpu` shows where they run there."""
    path = graph
    if dialect != "standard":
        write_streamed(llm.config, ModuleWeights(llm), folder / f"{dialect}-device", dialect=dialect, precision="fp32")
        path = folder / f"{dialect}-device/model.onnx"
    host, device = DecoderSession(path, DIMS, **CPU), DecoderSession(path, DIMS, **CPU)
    device._mover = RowMover(DeviceMemory(name="cpu"), np.float32, partial(open_session, **CPU))
    for size, rows in ((5, 3), (9, 1), (7, 5)):
        prompts = make_prompts(np.random.default_rng(size), rows, size, 32)
        states = [decoder.prefill(prompts, 24) for decoder in (host, device)]
        for order in ([], [2, 0, 0], [1, 1], [0, 1, 1, 0, 0, 1, 0], [6, 2], [1, 0]):
            if order and max(order) < len(states[0].logits):
                for state in states:
                    state.reorder(np.array(order))
            tokens = table.lookup(np.arange(len(states[0].logits))[:, None] + size)
            for state in states:
                state.decode(tokens)
            np.testing.assert_allclose(states[1].logits, states[0].logits, atol=1e-5)
        for state in states:
            state.reorder(np.array([0]))
            state.extend(table.lookup(np.array([[4, 5, 6]])))
            state.rollback(2)
            state.decode(table.lookup(np.array([[9]])))
        np.testing.assert_allclose(states[1].logits, states[0].logits, atol=1e-5)
        del states, state
    assert device._static is (dialect != "standard")


def test_reorder_repeats_drops_and_permutes_rows(decoder, table):
    prompts = make_prompts(np.random.default_rng(1), 3, 5, 32)
    rows = np.array([2, 0, 0, 2])
    moved = decoder.prefill(prompts, 8)
    moved.reorder(rows)
    fresh = decoder.prefill(prompts[rows], 8)
    np.testing.assert_allclose(moved.logits, fresh.logits, atol=1e-5)
    token = table.lookup(np.array([[4], [5], [6], [7]]))
    for state in (moved, fresh):
        state.decode(token)
    np.testing.assert_allclose(moved.logits, fresh.logits, atol=1e-5)


def test_states_of_one_session_do_not_touch_each_other(decoder, table):
    prompts = make_prompts(np.random.default_rng(2), 2, 5, 32)
    one, two = decoder.prefill(prompts[:1], 8), decoder.prefill(prompts[1:], 8)
    first = one.logits.copy()
    two.decode(table.lookup(np.array([[3]])))
    np.testing.assert_array_equal(one.logits, first)
    one.decode(table.lookup(np.array([[3]])))
    alone = decoder.prefill(prompts[:1], 8)
    alone.decode(table.lookup(np.array([[3]])))
    np.testing.assert_array_equal(one.logits, alone.logits)


def test_drafts_change_no_token(decoder, table):
    """On the real engine: what transformers generates too (below), with right, wrong and half-right drafts."""
    rng = np.random.default_rng(4)
    accepted = 0
    for _ in range(16):
        decoding = Decoding(
            num_beams=1,
            min_new_tokens=int(rng.choice([0, 20])),
            max_new_tokens=40,
            repetition_penalty=float(rng.choice([1.0, 1.2, 2.0])),
            no_repeat_ngram_size=int(rng.choice([0, 3])),
        )
        prompt = make_prompts(rng, 1, 9, 32)
        settings = {"eos_token_id": int(rng.integers(120)), "bos_token_id": 0}
        plain = generate(decoder, table, prompt, decoding, **settings)[0]
        half = [token if place % 5 else 7 for place, token in enumerate(plain.token_ids)]
        drafter = Drafter([SortedNgrams.build([half, plain.token_ids[:12]])], vocab_size=120)
        for _ in range(2):
            found = generate(decoder, table, prompt, decoding, **settings, drafter=drafter)[0]
            assert found.token_ids == plain.token_ids
            np.testing.assert_allclose(found.logprobs, plain.logprobs, atol=1e-4)
            drafter.learn(found.token_ids)
        accepted += found.accepted
    assert accepted > 120


@pytest.fixture(scope="module")
def transformers_tokens(llm):
    """What transformers generates with so many beams, once for all decoders: settings, prompts, EOS, token ids."""
    return {beams: list(_generated(llm, beams)) for beams in (1, 3)}


def _generated(llm, beams):
    rng = np.random.default_rng(3)
    for _ in range(20):
        decoding = Decoding(
            num_beams=beams,
            min_new_tokens=int(rng.choice([0, 10])),
            max_new_tokens=30,
            repetition_penalty=float(rng.choice([1.0, 2.0])),
            length_penalty=float(rng.choice([0.0, 1.0, 2.0])),
            no_repeat_ngram_size=int(rng.choice([0, 3])),
        )
        prompts = make_prompts(rng, int(rng.integers(1, 4)), 9, 32)
        eos = int(rng.integers(120))
        yield decoding, prompts, eos, hf_generate(llm, prompts, decoding, eos)["token_ids"]


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_equals_transformers(decoder, table, transformers_tokens, beams):
    for decoding, prompts, eos, expected in transformers_tokens[beams]:
        found = generate(decoder, table, prompts, decoding, eos_token_id=eos, bos_token_id=0)
        assert [one.token_ids for one in found] == expected, decoding


def test_half_precision_graph_takes_and_gives_float32(graph, folder, table, decoder):
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = folder / "half.onnx"
    onnx.save(convert_float_to_float16(onnx.load(graph)), half)
    prompts = make_prompts(np.random.default_rng(4), 2, 5, 32)
    logits = []
    for session in (decoder, DecoderSession(half, DIMS, **CPU)):
        state = session.prefill(prompts, 8)
        state.decode(table.lookup(np.array([[3], [4]])))
        state.reorder(np.array([1]))
        assert state.logits.dtype == np.float32
        logits.append(state.logits)
    np.testing.assert_allclose(logits[1], logits[0], atol=0.05)


def test_vision_session_gives_torchs_image_tokens(folder, tmp_path):
    config = ModelConfig()
    model = R2GenGPT.from_sources(make_tiny_vision(tmp_path / "vision"), make_tiny_llm(tmp_path / "llm"), config).eval()
    export_vision(model, folder / "vision.onnx", height=32, width=32)
    session = VisionSession(folder / "vision.onnx", **CPU)
    for views in (1, 3):
        pixels = np.random.default_rng(views).normal(size=(views, 3, 32, 32)).astype(np.float32)
        found = session.encode(pixels)
        with torch.no_grad():
            wanted = model.encode_images(torch.from_numpy(pixels)).numpy()
        assert found.shape == (1, 16, 32)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    with pytest.raises(R2GenError, match="512 of 512 image tokens") as caught:
        session.encode(np.full((1, 3, 32, 32), np.nan, np.float32))
    assert caught.value.code == "R2G-GENERATE-NONFINITE"
    with pytest.raises(R2GenError, match=r"vision\.onnx: inputs missing: attention_mask") as caught:
        DecoderSession(folder / "vision.onnx", DIMS, **CPU)
    assert caught.value.code == "R2G-BUNDLE-GRAPH"


def test_nonfinite_logits_are_refused_at_prefill_and_at_decode(decoder):
    prompts = make_prompts(np.random.default_rng(0), 2, 4, 32)
    state = decoder.prefill(prompts, 8)
    bad = prompts.copy()
    bad[1, 2, 3] = np.inf
    for run in (lambda: decoder.prefill(bad, 8), lambda: state.decode(np.full((2, 1, 32), np.nan, np.float32))):
        with pytest.raises(R2GenError, match="logits are NaN or infinity") as caught:
            run()
        assert caught.value.code == "R2G-GENERATE-NONFINITE"


@pytest.mark.parametrize("layers", [1, 3])
def test_graph_with_other_layers_is_refused(graph, layers):
    with pytest.raises(R2GenError, match=r"model\.onnx: inputs missing") as caught:
        DecoderSession(graph, dataclasses.replace(DIMS, num_layers=layers), **CPU)
    assert caught.value.code == "R2G-BUNDLE-GRAPH"


@pytest.mark.parametrize("content", [None, b"", b"not a graph", b"\x08\x0a" * 40])
def test_file_that_is_no_graph_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(R2GenError, match=r"model\.onnx: ONNX Runtime does not load it") as caught:
        VisionSession(path, **CPU)
    assert caught.value.code == "R2G-BUNDLE-GRAPH"
    assert str(tmp_path) not in caught.value.message


def test_thread_count_is_checked(graph):
    with pytest.raises(R2GenError, match="0 threads"):
        DecoderSession(graph, DIMS, providers=["CPUExecutionProvider"], threads=0)


def test_devices():
    assert choose_providers("cpu").providers == ["CPUExecutionProvider"]
    auto = choose_providers("auto")
    assert auto.name == auto.providers[0]
    assert auto.providers[-1] == "CPUExecutionProvider"
    assert [candidate.name for candidate in auto.candidates][:2] == ["TensorRT", "CUDA"]
    with pytest.raises(R2GenError, match="device 'tpu'") as caught:
        choose_providers("tpu")
    assert caught.value.code == "R2G-CONFIG-VALUE"


@pytest.mark.skipif(not providers._why_not_cuda(), reason="this machine has a usable GPU")
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_device_that_is_not_there(device):
    with pytest.raises(R2GenError, match="is not usable: ") as caught:
        choose_providers(device)
    assert caught.value.code == "R2G-DEVICE-UNAVAILABLE"


@pytest.mark.skipif(not providers._why_not_cuda(), reason="this machine has a usable GPU")
def test_silent_fallback_of_onnxruntime_is_an_error(graph):
    with pytest.raises(R2GenError, match="CUDAExecutionProvider did not start") as caught:
        DecoderSession(graph, DIMS, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert caught.value.code == "R2G-DEVICE-UNAVAILABLE"


def test_import_is_light():
    code = (
        "import sys, r2gen_export.runtime.decoding.generate\n"
        "heavy = {'onnxruntime', 'torch', 'transformers', 'optimum', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
