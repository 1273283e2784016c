"""Beam search against transformers, over many random settings, ties included; and the partial sort behind its ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r2gen_export.decoding import Decoding
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.parity.torch_decoder import TorchDecoder, TorchEmbeddings
from r2gen_export.runtime.decoding import topk as topk_module
from r2gen_export.runtime.decoding.generate import TokenEvent, generate
from r2gen_export.runtime.decoding.topk import topk
from tests.helpers.torch_decoder import hf_generate, make_llama, make_prompts

SMALL = [make_llama(vocab, seed=vocab) for vocab in (7, 12, 40, 200)]
TIED = [make_llama(9, equal_logits_from=0), make_llama(150, equal_logits_from=50)]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def run(model, prompts, decoding, eos):
    return generate(TorchDecoder(model), TorchEmbeddings(model), prompts, decoding, eos_token_id=eos, bos_token_id=0)


def random_decoding(rng: np.random.Generator, most_beams: int) -> Decoding:
    least = int(rng.choice([0, 0, 5]))
    return Decoding(
        num_beams=int(rng.integers(2, most_beams + 1)),
        min_new_tokens=least,
        max_new_tokens=least + int(rng.choice([1, 8, 20])),
        repetition_penalty=float(rng.choice([1.0, 0.7, 1.3, 2.0])),
        length_penalty=float(rng.choice([-2.0, -0.5, 0.0, 0.3, 1.0, 2.0])),
        no_repeat_ngram_size=int(rng.choice([0, 0, 1, 2, 3])),
        early_stopping=[False, True, "never"][rng.integers(3)],
    )


@pytest.mark.parametrize(("models", "seed"), [(SMALL, 0), (SMALL, 1), (TIED, 2)], ids=["", "again", "ties"])
def test_equals_transformers_over_random_settings(models, seed):
    rng = np.random.default_rng(seed)
    ended = total = 0
    for _ in range(150):
        model = models[rng.integers(len(models))]
        vocab = model.config.vocab_size
        prompts = make_prompts(rng, int(rng.integers(1, 4)), int(rng.choice([2, 5, 9])))
        decoding = random_decoding(rng, most_beams=5)
        eos = int(rng.integers(vocab))
        wanted = hf_generate(model, prompts, decoding, eos)
        found = run(model, prompts, decoding, eos)
        assert [one.token_ids for one in found] == wanted["token_ids"], (vocab, eos, decoding)
        np.testing.assert_allclose([one.score for one in found], wanted.sequences_scores.numpy(), rtol=1e-4, atol=1e-5)
        ended += sum(one.finish_reason == "eos" for one in found)
        total += len(found)
    assert 0.2 * total < ended < 0.9 * total, "the trials should end both ways"


@pytest.mark.parametrize("early_stopping", [False, "never"])
def test_stopping_rule_where_long_sequences_score_worse(early_stopping):
    """Negative length penalties: what a running beam may still reach is counted at its present length."""
    for seed in range(25):
        model = make_llama(4, seed=seed)
        model.lm_head.weight.data *= 8  # so that a running beam can be far ahead of the finished ones
        prompts = make_prompts(np.random.default_rng(seed), 6, 3)
        decoding = Decoding(
            num_beams=2,
            min_new_tokens=0,
            max_new_tokens=40,
            repetition_penalty=1.0,
            length_penalty=-1.0,
            early_stopping=early_stopping,
        )
        found = run(model, prompts, decoding, 1)
        assert [one.token_ids for one in found] == hf_generate(model, prompts, decoding, 1)["token_ids"], seed


@pytest.mark.parametrize(
    ("early_stopping", "length_penalty"), [(False, 2.0), (True, 2.0), ("never", 2.0), (False, 0.0), ("never", -1.0)]
)
def test_paper_settings(early_stopping, length_penalty):
    """Beam 3, penalty 2.0, 80 to 120 tokens. EOS is made likely, so that stopping rules decide the result."""
    model = make_llama(60, seed=5)
    model.lm_head.weight.data[2] *= 2
    prompts = make_prompts(np.random.default_rng(1), 2, 12)
    decoding = Decoding(length_penalty=length_penalty, early_stopping=early_stopping)
    found = run(model, prompts, decoding, 2)
    assert [one.token_ids for one in found] == hf_generate(model, prompts, decoding, 2)["token_ids"]
    assert all(80 <= len(one.token_ids) <= 120 for one in found)


def test_row_does_not_depend_on_its_batch_mates():
    model = SMALL[2]
    rng = np.random.default_rng(7)
    prompts = make_prompts(rng, 4, 6)
    for _ in range(10):
        decoding = random_decoding(rng, most_beams=4)
        eos = int(rng.integers(40))
        together = run(model, prompts, decoding, eos)
        alone = [run(model, prompts[row : row + 1], decoding, eos)[0] for row in range(4)]
        assert [one.token_ids for one in together] == [one.token_ids for one in alone], decoding


def test_studies_that_end_leave_the_batch():
    model = SMALL[1]
    decoding = Decoding(num_beams=3, min_new_tokens=0, max_new_tokens=40, repetition_penalty=1.0, early_stopping=True)
    for seed in range(20):
        decoder = TorchDecoder(model)
        prompts = make_prompts(np.random.default_rng(seed), 4, 5)
        found = generate(decoder, TorchEmbeddings(model), prompts, decoding, eos_token_id=3, bos_token_id=0)
        passes = [len(one.decode_ms) for one in found]
        if len(set(passes)) > 1:
            break
    else:
        pytest.fail("no seed gave studies of different length")
    assert decoder.batch_sizes == [4] + [3 * sum(step < n for n in passes) for step in range(max(passes))]


def test_logprobs_are_the_models_own_and_events_come_at_the_end():
    model = SMALL[3]
    prompts = make_prompts(np.random.default_rng(2), 2, 5)
    decoding = Decoding(num_beams=3, min_new_tokens=3, max_new_tokens=12, repetition_penalty=0.5)
    events: list[TokenEvent] = []
    found = generate(
        TorchDecoder(model),
        TorchEmbeddings(model),
        prompts,
        decoding,
        eos_token_id=1,
        bos_token_id=0,
        on_token=events.append,
    )
    for row, one in enumerate(found):
        ids = torch.tensor([one.token_ids])
        with torch.no_grad():
            embeds = torch.cat([torch.from_numpy(prompts[row : row + 1]), model.get_input_embeddings()(ids)], dim=1)
            logits = model(inputs_embeds=embeds).logits[:, prompts.shape[1] - 1 : -1]
        wanted = logits.log_softmax(-1).gather(2, ids[:, :, None])[0, :, 0]
        np.testing.assert_allclose(one.logprobs, wanted.numpy(), atol=1e-4)
        mine = [event for event in events if event.row == row]
        assert [event.token_id for event in mine] == list(one.token_ids)
        assert [event.logprob for event in mine] == list(one.logprobs)
        assert [event.step for event in mine] == list(range(len(one.token_ids)))


def test_length_penalty_beyond_float32_is_refused():
    with pytest.raises(R2GenError, match="length_penalty -40") as caught:
        run(SMALL[0], make_prompts(np.random.default_rng(0), 1, 3), Decoding(length_penalty=-40.0), 1)
    assert caught.value.code == "R2G-CONFIG-VALUE"


INPUTS = {
    "few values": lambda rng, n: rng.integers(0, 10, n),
    "whole numbers": lambda rng, n: rng.normal(0, 3, n).round(),
    "float16": lambda rng, n: rng.normal(0, 3, n).astype(np.float16),
    "no ties": lambda rng, n: rng.permutation(n),
    "ascending": lambda rng, n: np.sort(rng.normal(0, 3, n).round(2)),
    "descending": lambda rng, n: -np.sort(rng.normal(0, 3, n).round(2)),
    "constant": lambda rng, n: np.zeros(n),
    "half -inf": lambda rng, n: np.where(rng.random(n) < 0.5, -np.inf, rng.integers(0, 100, n)),
    "-inf first": lambda rng, n: np.where(np.arange(n) < n // 2, -np.inf, rng.integers(0, 1000, n)),
    "nearly all -inf": lambda rng, n: np.where(rng.random(n) < 0.99, -np.inf, rng.integers(0, 3, n)),
}


def assert_equals_torch(values: np.ndarray, k: int) -> None:
    expected = torch.topk(torch.from_numpy(values), k)[1].numpy()
    np.testing.assert_array_equal(topk(values, k), expected)


@pytest.mark.parametrize("kind", INPUTS)
def test_topk_breaks_ties_as_torch_does(kind):
    rng = np.random.default_rng(0)
    for _ in range(600):
        k = int(rng.integers(1, 130))
        # Sizes around 64 * k, where torch changes its algorithm.
        n = int(rng.choice([k, k + 1, k + 3, 2 * k, 3 * k, 20 * k, 64 * k - 1, 64 * k, 70 * k]))
        assert_equals_torch(INPUTS[kind](rng, n).astype(np.float32), k)
    for _ in range(3):
        assert_equals_torch(INPUTS[kind](rng, 96_000).astype(np.float32), 6)


@pytest.mark.parametrize("kind", [kind for kind in INPUTS if kind != "ascending"])
def test_topk_takes_few_steps_also_where_values_tie(kind, monkeypatch):
    """Steps in Python, of the heap (96,000 values) and of quicksort (8,191); an ascending array alone enters whole."""
    steps = []
    for name in ("_entry", "_partition_around_median"):
        step = getattr(topk_module, name)
        monkeypatch.setattr(topk_module, name, lambda *arguments, step=step: (steps.append(1), step(*arguments))[1])
    rng = np.random.default_rng(0)
    for n, k in ((96_000, 6), (8_191, 128)):
        steps.clear()
        topk(INPUTS[kind](rng, n).astype(np.float32), k)
        assert len(steps) < 200, (n, k)


@pytest.mark.parametrize(("n", "k", "sorting"), [(300, 150, False), (600, 599, True)], ids=["nth_element", "sort"])
def test_topk_breaks_ties_as_torch_does_where_quicksort_gives_up(n, k, sorting, monkeypatch):
    """On such inputs libstdc++ falls back to a heap, and so must we.

    The input comes about while it is partitioned (McIlroy, A Killer Adversary for Quicksort, 1999): a value is 0 until
    it is a candidate for the pivot, then the largest of those that are left, and so two leave with every partition. For
    `sort` the smallest ones come first: `nth_element`, which runs before it, then ends at once.
    """
    values, order = np.zeros(n, np.float32), np.arange(n)
    ranks = iter(range(n, 0, -1))
    sign = -1 if sorting else 1
    partition, heap_select = topk_module._partition_around_median, topk_module._heap_select

    def adversary(values: np.ndarray, order: np.ndarray, first: int, last: int) -> int:
        for place in order[[first + 1, first + (last - first) // 2]]:
            if values[place] == 0:
                values[place] = sign * next(ranks)
        return partition(values, order, first, last)

    with monkeypatch.context() as patched:
        patched.setattr(topk_module, "_partition_around_median", adversary)
        topk_module._nth_element(values, order, k - 1)
        if sorting:
            sign = 1
            topk_module._introsort(values, order, 0, k - 1, topk_module._depth(k - 1))

    fallbacks = []
    monkeypatch.setattr(
        topk_module, "_heap_select", lambda *arguments: (fallbacks.append(1), heap_select(*arguments))[1]
    )
    undecided = values == 0
    for distinct in (1, 2, 10, 1000):
        values[undecided] = np.random.default_rng(0).integers(0, distinct, undecided.sum()) / distinct
        assert_equals_torch(values, k)
    assert len(fallbacks) == 4
