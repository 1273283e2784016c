"""A running batch: every study gets what it gets alone, whoever enters and leaves beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from r2gen_export.bundle import Dims
from r2gen_export.decoding import Decoding
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.exporting.decoder.weights import ModuleWeights
from r2gen_export.exporting.decoder.write import write_streamed
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.gpu_kv_cache import DeviceMemory, RowMover
from r2gen_export.runtime.backends.openvino_decoder import OpenVinoDecoder
from r2gen_export.runtime.backends.ort_decoder import DecoderSession
from r2gen_export.runtime.backends.ort_session import open_session
from r2gen_export.runtime.decoding.batch import Ended, RunningBatch
from r2gen_export.runtime.decoding.batch_studies import Request
from r2gen_export.runtime.decoding.generate import generate
from r2gen_export.runtime.decoding.sequence import Sequence
from r2gen_export.runtime.drafting.drafter import Drafter
from r2gen_export.runtime.drafting.ngrams import SortedNgrams
from tests.helpers.tiny import make_tiny_llm
from tests.helpers.torch_decoder import make_prompts

CPU: dict[str, Any] = {"providers": ["CPUExecutionProvider"], "threads": 1}
DIMS = Dims(image_tokens=16, d_llm=32, vocab_size=120, num_layers=2, num_kv_heads=2, head_dim=16, max_positions=256)
EOS, BOS = 5, 0
GREEDY = Decoding(num_beams=1, min_new_tokens=0, max_new_tokens=30, repetition_penalty=1.0, length_penalty=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaMA's embeddings, and its graph in both dialects that keep a length for each row."""
    folder = tmp_path_factory.mktemp("running")
    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(make_tiny_llm(folder / "llm")).eval()
    for dialect in ("ort", "trt"):
        write_streamed(model.config, ModuleWeights(model), folder / dialect, dialect=dialect, precision="fp32")
    np.save(folder / "embed_tokens.npy", model.get_input_embeddings().weight.detach().numpy())
    return folder


@pytest.fixture(scope="module")
def table(folder: Path) -> EmbeddingTable:
    return EmbeddingTable(folder / "embed_tokens.npy")


@pytest.fixture(scope="module", params=["ort", "trt", "openvino", "ort as on a GPU"])
def decoder(request: pytest.FixtureRequest, folder: Path) -> Any:
    name = request.param.split()[0]
    if name == "openvino":
        return OpenVinoDecoder(folder / "ort/model.onnx", DIMS, threads=1)
    session = DecoderSession(folder / name / "model.onnx", DIMS, **CPU, wide_rows=name == "trt")
    if request.param != name:
        session._mover = RowMover(DeviceMemory(name="cpu"), np.float32, partial(open_session, **CPU))
    return session


@pytest.fixture
def open_batch(decoder: Any, table: EmbeddingTable) -> Callable[..., RunningBatch]:
    def opened(rows: int, embeddings: Any = table, **more: Any) -> RunningBatch:
        return RunningBatch(decoder, embeddings, rows=rows, positions=80, bos_token_id=BOS, eos_token_id=EOS, **more)

    return opened


def random_requests(rng: np.random.Generator, count: int) -> dict[int, Request]:
    """Greedy and beams in both semantics, prompts and reports of different length."""
    requests = {}
    for key in range(count):
        least = int(rng.choice([0, 0, 6]))
        decoding = Decoding(
            num_beams=int(rng.choice([1, 1, 2, 3])),
            min_new_tokens=least,
            max_new_tokens=least + int(rng.choice([1, 8, 25])),
            repetition_penalty=float(rng.choice([1.0, 0.7, 1.2, 2.0])),
            no_repeat_ngram_size=int(rng.choice([0, 0, 2])),
            length_penalty=float(rng.choice([0.0, 1.0, 2.0])),
            early_stopping=(True, False, "never")[rng.integers(3)],  # type: ignore[arg-type]
        )
        prompt = make_prompts(rng, 1, int(rng.choice([9, 9, 5, 20])), 32)
        requests[key] = Request(prompt, decoding, ("hf-current", "hf-4.30")[rng.integers(2)])  # type: ignore[arg-type]
    return requests


def alone(decoder: Any, table: EmbeddingTable, request: Request) -> Sequence:
    ids = {"bos_token_id": BOS, "eos_token_id": EOS}
    return generate(decoder, table, request.prompt, request.decoding, semantics=request.semantics, **ids)[0]


def run(batch: RunningBatch, requests: dict[int, Request]) -> Iterator[Ended]:
    """Add what fits, step, until all have ended."""
    waiting = list(requests.items())
    while waiting or len(batch):
        while waiting and batch.fits(waiting[0][1]):
            yield from batch.add(*waiting.pop(0)).ended
        yield from batch.step().ended


def check_equal(actual: Sequence | None, expected: Sequence) -> None:
    assert actual is not None
    assert (actual.token_ids, actual.finish_reason) == (expected.token_ids, expected.finish_reason)
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, atol=1e-5)
    assert len(actual.decode_ms) == len(expected.decode_ms)
    if expected.score is not None:
        assert actual.score == pytest.approx(expected.score, abs=1e-5)


def test_studies_get_what_they_get_alone(decoder: Any, table: EmbeddingTable, open_batch: Any) -> None:
    rng = np.random.default_rng(0)
    lengths, together = set(), set()
    for rows in (3, 4, 7):
        requests = random_requests(rng, 14)
        ended = {one.key: one for one in run(open_batch(rows), requests)}
        assert ended.keys() == requests.keys()
        for key, request in requests.items():
            sequence = ended[key].sequence
            check_equal(sequence, alone(decoder, table, request))
            lengths.add(len(sequence.token_ids))
            together.add(sequence.together)
    assert len(lengths) > 8
    assert {1, 3, 4} <= together, "studies should run beside few and many others"


def test_drafts_change_the_passes_and_no_token(decoder: Any, table: EmbeddingTable, open_batch: Any) -> None:
    """Right drafts, wrong ones, and studies without any, beside beams."""
    rng = np.random.default_rng(6)
    accepted_beside = accepted_alone = 0
    for rows in (1, 4, 7):
        requests = {key: request for key, request in random_requests(rng, 14).items() if request.rows <= rows}
        expected = {key: alone(decoder, table, request) for key, request in requests.items()}
        known = [list(sequence.token_ids) for key, sequence in expected.items() if key % 3]
        for tokens in known[::2]:
            tokens[rng.integers(len(tokens))] = int(rng.integers(DIMS.vocab_size))
        drafter = Drafter([SortedNgrams.build(known)], vocab_size=DIMS.vocab_size)
        drafter.pace.best = lambda studies, rows=1: max(map(len, studies), default=0)  # type: ignore[method-assign]
        ended = {one.key: one for one in run(open_batch(rows, drafter=drafter), requests)}
        assert ended.keys() == requests.keys()
        for key, plain in expected.items():
            sequence = ended[key].sequence
            assert sequence is not None
            assert (sequence.token_ids, sequence.finish_reason) == (plain.token_ids, plain.finish_reason)
            np.testing.assert_allclose(sequence.logprobs, plain.logprobs, atol=1e-5)
            assert 0 <= sequence.accepted <= sequence.drafted
            saved = len(plain.token_ids) - 1 - len(sequence.decode_ms)
            assert saved in (sequence.accepted, sequence.accepted - 1), "each that holds saves a pass, but for an EOS"
            accepted_beside += sequence.accepted if sequence.together > 1 else 0
            accepted_alone += sequence.accepted if sequence.together == 1 else 0
    assert accepted_alone > 10
    assert (accepted_beside > 10) is decoder.wide_rows


def test_a_draft_that_is_not_finite_ends_its_study_alone(decoder: Any, table: EmbeddingTable, open_batch: Any) -> None:
    """What it wrote into the cache is behind the end of the others, and is cleared."""
    if not decoder.wide_rows:
        pytest.skip("drafts are for a study that runs by itself")
    rng = np.random.default_rng(8)
    requests = {key: Request(make_prompts(rng, 1, 6, 32), GREEDY) for key in range(6)}
    expected = {key: alone(decoder, table, request) for key, request in requests.items()}
    bad = next(
        token for token in range(DIMS.vocab_size) if all(token not in one.token_ids for one in expected.values())
    )
    drafter = Drafter([SortedNgrams.build([[*expected[2].token_ids[:3], bad, 1, 2]])], vocab_size=DIMS.vocab_size)
    drafter.pace.best = lambda studies, rows=1: max(map(len, studies), default=0)  # type: ignore[method-assign]
    ended = {one.key: one for one in run(open_batch(3, Spoiling(table, bad), drafter=drafter), requests)}
    failed = {key for key, one in ended.items() if one.error is not None}
    assert 2 in failed
    assert len(failed) < 5
    for key in requests.keys() - failed:
        sequence = ended[key].sequence
        assert sequence is not None and sequence.token_ids == expected[key].token_ids


def test_rows_that_become_free_are_used_at_the_next_step(open_batch: Any) -> None:
    """As few steps as studies that wait for a free row can need, where batches that begin together need more."""
    rng = np.random.default_rng(1)
    requests = {key: Request(make_prompts(rng, 1, 6, 32), GREEDY) for key in range(24)}
    batch = open_batch(4)
    waiting, lengths, steps, full = list(requests.items()), {}, 0, 0
    while waiting or len(batch):
        ended = []
        while waiting and batch.fits(waiting[0][1]):
            ended += batch.add(*waiting.pop(0)).ended
        steps += 1
        full += len(batch) == 4
        ended += batch.step().ended
        lengths |= {one.key: len(one.sequence.decode_ms) for one in ended}
    rows = [0] * 4
    for key in requests:  # each in the row that is free first
        rows[rows.index(min(rows))] += lengths[key]
    static = sum(max(lengths[key] for key in range(first, first + 4)) for first in range(0, 24, 4))
    assert steps <= max(rows) + 1 < static
    assert full > 0.7 * steps


def test_a_study_that_is_removed_leaves_the_others_alone(decoder: Any, table: EmbeddingTable, open_batch: Any) -> None:
    rng = np.random.default_rng(2)
    for _ in range(3):
        requests = random_requests(rng, 10)
        batch, ended = open_batch(7), {}
        waiting = list(requests.items())
        gone = set()
        while waiting or len(batch):
            while waiting and batch.fits(waiting[0][1]):
                ended |= {one.key: one for one in batch.add(*waiting.pop(0)).ended}
            if rng.random() < 0.2:
                key = int(rng.integers(10))
                gone |= {key} - ended.keys() if key not in dict(waiting) else set()
                batch.remove(key)
            ended |= {one.key: one for one in batch.step().ended}
        assert ended.keys() == requests.keys() - gone
        for key, one in ended.items():
            check_equal(one.sequence, alone(decoder, table, requests[key]))
    assert gone


class Spoiling:
    """Embeddings that are not a number for one token."""

    def __init__(self, table: EmbeddingTable, token: int) -> None:
        self._table, self._token = table, token

    def lookup(self, ids: Any) -> Any:
        embeds = self._table.lookup(ids)
        embeds[ids == self._token] = np.nan
        return embeds


def test_a_study_that_is_not_finite_ends_alone_and_leaves_nothing_behind(
    decoder: Any, table: EmbeddingTable, open_batch: Any
) -> None:
    """One fails at its prompt, others at their first, third, ... token; later ones take their rows."""
    rng = np.random.default_rng(3)
    requests = random_requests(rng, 24)
    bad = make_prompts(rng, 1, 9, 32)
    bad[0, 4] = np.nan
    requests[7] = Request(bad, GREEDY)
    expected = {key: alone(decoder, table, request) for key, request in requests.items() if key != 7}
    used = [set(sequence.token_ids[:-1]) for sequence in expected.values()]
    token = max(set.union(*used) - {EOS}, key=lambda one: min(sum(one in ids for ids in used), 6))
    ended = {one.key: one for one in run(open_batch(4, Spoiling(table, token)), requests)}
    failed = {key for key, one in ended.items() if one.error is not None}
    for key in failed:
        error = ended[key].error
        assert isinstance(error, R2GenError)
        assert error.code == "R2G-GENERATE-NONFINITE"
    # A beam that was dropped had the token too, so more than those whose best sequence has it may fail.
    assert {7, *(key for key, one in expected.items() if token in one.token_ids[:-1])} <= failed
    assert 2 < len(failed) < 20
    for key in requests.keys() - failed:
        check_equal(ended[key].sequence, expected[key])


@pytest.mark.parametrize("dialect", ["ort", "trt"])
def test_slots_that_are_not_in_use_do_not_count(folder: Path, table: EmbeddingTable, dialect: str) -> None:
    """`GroupQueryAttention` does not read them: NaN there changes nothing. The `trt` dialect multiplies them by 0."""
    poison = np.nan if dialect == "ort" else 1e6
    rng = np.random.default_rng(4)
    prompts = [make_prompts(rng, 1, size, 32) for size in (9, 4, 14)]
    logits = {}
    for content in (0, poison):
        session = DecoderSession(folder / dialect / "model.onnx", DIMS, **CPU)
        state: Any = session.open_rows(4, 60)
        logits[content] = []
        for row, prompt in enumerate(prompts):
            state.join(prompt, row)
            for place, length in enumerate(state._lengths):
                for array in state._cache.arrays:
                    array[place, :, length:] = content
                    array[row + 1 :] = content
            for token in (3, 70, 9):
                embeds = table.lookup(np.full((row + 1, 1), token))
                logits[content].append(state.advance(embeds)[:, 0].copy())
    for clean, poisoned in zip(logits[0], logits[poison], strict=True):
        np.testing.assert_array_equal(clean, poisoned)


def test_what_does_not_fit_is_refused(open_batch: Any) -> None:
    batch = open_batch(3)
    prompt = make_prompts(np.random.default_rng(0), 1, 5, 32)
    beams = Request(prompt, Decoding(num_beams=3, min_new_tokens=0, max_new_tokens=9))
    assert batch.fits(beams)
    batch.add(1, Request(prompt, GREEDY))
    assert not batch.fits(beams)
    longer = Decoding(num_beams=1, min_new_tokens=0, max_new_tokens=76)
    for key, request in ((2, beams), (1, Request(prompt, GREEDY)), (2, Request(prompt, longer))):
        with pytest.raises(InternalError, match="do not fit"):
            batch.add(key, request)
    with pytest.raises(R2GenError, match="max_new_tokens 0"):
        batch.add(2, Request(prompt, Decoding(num_beams=1, min_new_tokens=0, max_new_tokens=0)))
    batch.remove(1)
    batch.remove(1)
    assert batch.fits(beams)
    assert not batch.step().ended


def test_tokens_come_as_they_are_chosen(open_batch: Any, decoder: Any, table: EmbeddingTable) -> None:
    batch = open_batch(2)
    requests = {key: Request(make_prompts(np.random.default_rng(key), 1, 6, 32), GREEDY) for key in (11, 12)}
    seen: dict[int, list[int]] = {11: [], 12: []}
    steps = [batch.add(11, requests[11]), batch.step(), batch.add(12, requests[12])]
    while len(batch):
        steps.append(batch.step())
    for progress in steps:
        for event in progress.tokens:
            assert event.step == len(seen[event.row])
            seen[event.row].append(event.token_id)
    for key, request in requests.items():
        assert tuple(seen[key]) == alone(decoder, table, request).token_ids


def test_a_row_that_was_not_finite_is_used_again(decoder: Any, table: EmbeddingTable) -> None:
    """Positions behind the next study's own would reach it: they are multiplied by 0, which keeps NaN."""
    rng = np.random.default_rng(5)
    longer, shorter, beside = (make_prompts(rng, 1, size, 32) for size in (20, 5, 9))
    token = table.lookup(np.array([[3], [4]]))
    logits = []
    for spoiled in (False, True):
        state = decoder.open_rows(2, 60)
        state.join(beside, 0)
        state.join(longer, 1)
        embeds = token.copy()
        if spoiled:
            embeds[1] = np.nan
        assert np.isfinite(state.advance(embeds)[:, 0]).all(axis=1).tolist() == [True, not spoiled]
        state.join(shorter, 1)
        logits.append([state.advance(token)[:, 0].copy() for _ in range(3)])
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-6)
