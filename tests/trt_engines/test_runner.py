"""The engine runner against a double of each TensorRT release: what it computes, what it calls, what it refuses."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from r2gen_export.decoding import Decoding
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.decoder.weights import ModuleWeights
from r2gen_export.exporting.decoder.write import write_streamed
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.ort_decoder import DecoderSession
from r2gen_export.runtime.decoding.batch import RunningBatch
from r2gen_export.runtime.decoding.batch_studies import Request
from r2gen_export.runtime.decoding.generate import generate
from r2gen_export.runtime.drafting.drafter import Drafter
from r2gen_export.runtime.drafting.ngrams import SortedNgrams
from tests.helpers.tiny import make_tiny_llm
from tests.helpers.torch_decoder import make_prompts
from tests.trt_engines.fake_engine import Plan
from tests.trt_engines.rig import DIMS, LENGTH, PROFILES, Rig, decoder_plan, in_a_new_thread, make_rig
from trt_engines.kv_cache import MOST_PASSES, row_moves
from trt_engines.sessions import EngineDecoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA's embeddings and its graph in the `trt` dialect."""
    folder = tmp_path_factory.mktemp("engine")
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(make_tiny_llm(folder / "llm")).eval()
    write_streamed(model.config, ModuleWeights(model), folder / "decoder", dialect="trt", precision="fp32")
    np.save(folder / "embed_tokens.npy", model.get_input_embeddings().weight.detach().numpy())
    return folder


@pytest.fixture(scope="module")
def table(folder: Path) -> EmbeddingTable:
    return EmbeddingTable(folder / "embed_tokens.npy")


@pytest.fixture(scope="module")
def reference(folder: Path) -> DecoderSession:
    return DecoderSession(folder / "decoder/model.onnx", DIMS, providers=["CPUExecutionProvider"], threads=1)


@pytest.fixture
def profiles() -> tuple[tuple[int, int, int], ...]:
    """What the engine was built for; tests that need others parametrise it."""
    return PROFILES


@pytest.fixture
def device_id() -> int:
    """The GPU the engine runs on, likewise."""
    return 0


@pytest.fixture
def make(tmp_path: Path, stub_file: Path, cuda_runtime: Any) -> Callable[[Plan, int], Rig]:
    """The rig of a plan, on a GPU of that number."""
    return lambda plan, device_id: make_rig(plan, tmp_path, stub_file, cuda_runtime, device_id=device_id)


@pytest.fixture
def rig(folder: Path, make: Callable[[Plan, int], Rig], profiles: Any, device_id: int) -> Rig:
    return make(decoder_plan(folder / "decoder/model.onnx", profiles), device_id)


@pytest.fixture
def decoder(rig: Rig) -> EngineDecoder:
    return EngineDecoder(rig.folder, DIMS, rig.backend, rig.cuda)


def test_a_report_is_that_of_onnx_runtime(decoder, reference, table, rig):
    """Prefill, decode, drafts taken back, rows reordered, dropped and doubled: logits and shapes of every pass."""
    rng = np.random.default_rng(0)
    prompts = make_prompts(rng, 3, 7, 32)
    states = [one.prefill(prompts, 40) for one in (decoder, reference)]

    def both(act):
        found = [act(state) for state in states]
        np.testing.assert_allclose(states[0].logits, states[1].logits, atol=1e-5)
        if found[0] is not None:
            np.testing.assert_allclose(*found, atol=1e-5)

    def token(count, size=1):
        return table.lookup(rng.integers(0, 120, (count, size)))

    for _ in range(4):
        embeds = token(3)
        both(lambda state, embeds=embeds: state.decode(embeds))
    for rows in ([0, 0, 1, 2, 2, 2], [1, 0, 3, 4, 5, 2], [5, 4, 4, 0], [2, 2], [1, 0]):
        both(lambda state, rows=rows: state.reorder(np.array(rows)))
        for _ in range(3):
            embeds = token(len(rows))
            both(lambda state, embeds=embeds: state.decode(embeds))
    for size, back in ((4, 3), (9, 9), (9, 0), (2, 1), (4, 0)):
        embeds = token(2, size)
        both(lambda state, embeds=embeds: state.extend(embeds))
        if back:
            for state in states:
                state.rollback(back)
    assert not [call for call in rig.runtime.calls if call == "cudaMalloc"][MOST_ALLOCATIONS:]


MOST_ALLOCATIONS = 7
"""Scratch, four inputs and outputs, the cache, and once more when it got more rows."""


def test_studies_that_enter_and_leave_get_what_they_get_alone(decoder, reference, table, rig):
    """Greedy and beams in a running batch, one of them not finite; prompts are read in one row, bound once."""
    rng = np.random.default_rng(11)
    requests = {}
    for key in range(10):
        beams, most = int(rng.choice([1, 1, 3])), int(rng.choice([3, 9, 20]))
        decoding = Decoding(num_beams=beams, min_new_tokens=0, max_new_tokens=most, repetition_penalty=1.2)
        requests[key] = Request(make_prompts(rng, 1, 9, 32), decoding)
    spoiled = make_prompts(rng, 1, 9, 32)
    spoiled[0, 3] = np.inf
    requests[4] = Request(spoiled, requests[4].decoding)
    batch = RunningBatch(decoder, table, rows=4, positions=40, bos_token_id=0, eos_token_id=7)
    waiting, ended = list(requests.items()), {}
    while waiting or len(batch):
        while waiting and batch.fits(waiting[0][1]):
            ended |= {one.key: one for one in batch.add(*waiting.pop(0)).ended}
        ended |= {one.key: one for one in batch.step().ended}
    assert ended[4].error.code == "R2G-GENERATE-NONFINITE"
    for key in requests.keys() - {4}:
        one = requests[key]
        expected = generate(reference, table, one.prompt, one.decoding, eos_token_id=7, bos_token_id=0)[0]
        assert ended[key].sequence.token_ids == expected.token_ids
        np.testing.assert_allclose(ended[key].sequence.logprobs, expected.logprobs, atol=1e-5)
    prefills = [one for one in rig.double.calls if one.name == "set_input_shape" and one.arguments[1][1:] == (9, 32)]
    assert len(prefills) <= 2, "one in the first row, one in the spare row"


def test_the_calls_of_load_prefill_and_decode(decoder, table, rig):
    """The sequence itself, so that a change of it is seen; the double has checked every name, arity and type."""
    assert rig.double.names("Runtime") == ["__init__", "deserialize_cuda_engine"]
    state = decoder.prefill(make_prompts(np.random.default_rng(0), 1, 20, 32), 40)
    tensors = 4 + 2 * 2 * DIMS.num_layers
    bind = ["set_device_memory", "set_optimization_profile_async", *["set_input_shape"] * (tensors // 2 + 1)]
    bind += ["infer_shapes", *["set_tensor_address"] * tensors, "get_tensor_shape"]
    assert rig.double.names("IExecutionContext") == [*bind, "execute_async_v3"]
    profiles = [one.arguments[0] for one in rig.double.calls if one.name == "set_optimization_profile_async"]
    rig.double.calls.clear()
    rig.runtime.calls.clear()
    for _ in range(4):
        state.decode(table.lookup(np.array([[5]])))
    # Plainly, then captured: the last three passes are launches of one graph, and TensorRT is not called for them.
    asked = ["is_stream_capturable"] if rig.backend.name == "tensorrt-rtx" else []
    assert rig.double.names("IExecutionContext") == [*bind, "execute_async_v3", *asked, "execute_async_v3"]
    profiles += [one.arguments[0] for one in rig.double.calls if one.name == "set_optimization_profile_async"]
    assert profiles == [0, 1]
    copies = ["cudaMemcpyAsync"] * 3
    plain = ["cudaStreamSynchronize", *copies, "cudaMemcpyAsync", "cudaStreamSynchronize"]
    capture = ["cudaStreamBeginCapture", *copies, "cudaMemcpyAsync", "cudaStreamEndCapture", "cudaGraphInstantiate"]
    replay = ["cudaGraphLaunch", "cudaStreamSynchronize"]
    assert rig.runtime.calls == [*plain, *capture, "cudaGraphDestroy", *replay, *replay, *replay]
    rig.runtime.calls.clear()
    state.reorder(np.array([0, 0, 0]))
    state.reorder(np.array([1, 0, 2]))
    grown = ["cudaMalloc", "cudaMemsetAsync", *["cudaMemcpy3DAsync"] * 2 * DIMS.num_layers, "cudaStreamSynchronize"]
    assert rig.runtime.calls[0] == "cudaGraphExecDestroy"
    assert rig.runtime.calls[1:] == [*grown, "cudaFree", *["cudaMemcpy3DAsync"] * (2 + 3)]


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_writes_the_tokens_of_onnx_runtime(decoder, reference, table, beams):
    rng = np.random.default_rng(3)
    for _ in range(6):
        decoding = Decoding(
            num_beams=beams, min_new_tokens=int(rng.choice([0, 10])), max_new_tokens=30,
            repetition_penalty=float(rng.choice([1.0, 2.0])), length_penalty=float(rng.choice([0.0, 1.0, 2.0])),
        )  # fmt: skip
        prompts = make_prompts(rng, int(rng.integers(1, 4)), 9, 32)
        settings = {"eos_token_id": int(rng.integers(120)), "bos_token_id": 0}
        found = [generate(one, table, prompts, decoding, **settings) for one in (decoder, reference)]
        assert [one.token_ids for one in found[0]] == [one.token_ids for one in found[1]]


def test_drafts_change_no_token(decoder, reference, table):
    rng = np.random.default_rng(4)
    decoding = Decoding(num_beams=1, min_new_tokens=20, max_new_tokens=40)
    prompt = make_prompts(rng, 1, 9, 32)
    plain = generate(reference, table, prompt, decoding, eos_token_id=3, bos_token_id=0)[0]
    half = [token if place % 5 else 7 for place, token in enumerate(plain.token_ids)]
    drafter = Drafter([SortedNgrams.build([half, plain.token_ids[:12]])], vocab_size=120)
    found = generate(decoder, table, prompt, decoding, eos_token_id=3, bos_token_id=0, drafter=drafter)[0]
    assert found.token_ids == plain.token_ids
    assert found.accepted > 0


def test_memory_is_used_again_and_given_back(decoder, table, rig):
    """Reports of one shape allocate nothing after the first; a cache leaves no trace; closing leaves nothing."""
    prompts = make_prompts(np.random.default_rng(7), 2, 5, 32)

    def report():
        state = decoder.prefill(prompts, 8)
        state.reorder(np.array([0, 0, 0, 1, 1, 1]))
        for _ in range(3):
            state.decode(table.lookup(np.full((6, 1), 9)))
        return state.logits.copy()

    wanted = report()
    rig.runtime.calls.clear()
    with pytest.raises(R2GenError, match="logits are NaN") as caught:
        decoder.prefill(np.full((2, 30, 32), np.nan, np.float32), 2)
    assert caught.value.code == "R2G-GENERATE-NONFINITE"
    np.testing.assert_array_equal(report(), wanted)
    assert "cudaMalloc" not in rig.runtime.calls
    assert rig.runtime.calls.count("cudaMallocHost") == 0
    gc.collect()
    decoder.close()
    rig.cuda.close()
    assert not rig.runtime.blocks


@pytest.mark.parametrize("device_id", [1])
def test_every_thread_works_on_the_gpu_that_was_asked_for(rig, reference, table):
    """Loaded in one, used in others, as for a streamed report: the fake GPU refuses what goes to the wrong one."""
    decoder = in_a_new_thread(lambda: EngineDecoder(rig.folder, DIMS, rig.backend, rig.cuda))
    prompts = make_prompts(np.random.default_rng(0), 1, 5, 32)
    states = [in_a_new_thread(lambda: decoder.prefill(prompts, 40))]
    wanted = reference.prefill(prompts, 40)
    token = table.lookup(np.array([[7]]))
    for rows in ([0], [0, 0, 0], [2, 0, 1]):
        in_a_new_thread(lambda rows=rows: states[0].reorder(np.array(rows)))
        wanted.reorder(np.array(rows))
        for _ in range(3):
            embeds = np.repeat(token, len(rows), axis=0)
            in_a_new_thread(lambda embeds=embeds: states[0].decode(embeds))
            wanted.decode(embeds)
            np.testing.assert_allclose(states[0].logits, wanted.logits, atol=1e-5)
    assert {home for _, _, home in rig.runtime.blocks.values()} == {1}
    states.clear()
    gc.collect()
    in_a_new_thread(decoder.close)
    in_a_new_thread(rig.cuda.close)
    assert not rig.runtime.blocks


def test_states_of_one_decoder_do_not_touch_each_other(decoder, table):
    prompts = make_prompts(np.random.default_rng(2), 2, 5, 32)
    one, two = decoder.prefill(prompts[:1], 8), decoder.prefill(prompts[1:], 8)
    first = one.logits.copy()
    two.decode(table.lookup(np.array([[3]])))
    np.testing.assert_array_equal(one.logits, first)
    one.decode(table.lookup(np.array([[3]])))
    alone = decoder.prefill(prompts[:1], 8)
    alone.decode(table.lookup(np.array([[3]])))
    np.testing.assert_array_equal(one.logits, alone.logits)


@pytest.mark.parametrize("profiles", [((2, 6, 1), (4, 3, 3))])
def test_more_than_the_profiles_take_goes_in_pieces(rig, reference, table):
    """Rows beyond the largest batch, a prompt beyond the longest pass, more drafts than logits."""
    decoder = EngineDecoder(rig.folder, DIMS, rig.backend, rig.cuda)
    prompts = make_prompts(np.random.default_rng(5), 5, 17, 32)
    states = [one.prefill(prompts, 30) for one in (decoder, reference)]
    np.testing.assert_allclose(states[0].logits, states[1].logits, atol=1e-5)
    for size in (1, 7):
        embeds = table.lookup(np.random.default_rng(6).integers(0, 120, (5, size)))
        np.testing.assert_allclose(*(state.extend(embeds) for state in states), atol=1e-5)


def test_only_so_many_shapes_are_kept_ready(decoder, reference, table, rig):
    """The oldest shape's graph goes, and comes back when it is needed again."""
    prompt = make_prompts(np.random.default_rng(5), 1, 5, 32)
    states = [one.prefill(prompt, 40) for one in (decoder, reference)]
    for rows in (*range(1, 7), 1):
        for state in states:
            state.reorder(np.zeros(rows, np.int64))
        for size in (1, 2, 4):
            embeds = table.lookup(np.full((rows, size), 3))
            for _ in range(3):
                np.testing.assert_allclose(*(state.extend(embeds) for state in states), atol=1e-5)
                for state in states:
                    state.rollback(size)
    assert MOST_PASSES < 6 * 3
    assert rig.runtime.calls.count("cudaGraphExecDestroy") > 0


def test_longer_reports_than_the_engine_was_built_for_are_refused(decoder):
    prompts = make_prompts(np.random.default_rng(0), 1, 20, 32)
    with pytest.raises(R2GenError, match=f"65 positions, but the engine was built for {LENGTH}") as caught:
        decoder.prefill(prompts, 45)
    assert caught.value.code == "R2G-CONFIG-VALUE"


def test_row_moves_lose_nothing():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        before = int(rng.integers(1, 9))
        rows = rng.integers(0, before, int(rng.integers(1, 9)))
        if rng.random() < 0.5:
            rows = rng.permutation(before)
        content = [*range(before), *[-1] * (20 - before)]
        for target, source, reader in row_moves(rows, spare=19):
            content[target] = content[source]
            assert rows[reader] != reader
        assert content[: len(rows)] == list(rows)
    assert len(row_moves(np.array([1, 2, 0, 3]), 9)) == 4
    assert len(row_moves(np.array([0, 0, 0]), 9)) == 2
    assert PROFILES[0][0] >= 2
