"""Beam search against transformers, over many random settings; and the search for the largest scores behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r2gen_export.decoding import Decoding
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.parity.torch_decoder import TorchDecoder, TorchEmbeddings
from r2gen_export.runtime.decoding.generate import TokenEvent, generate
from r2gen_export.runtime.decoding.topk import topk
from tests.helpers.torch_decoder import hf_generate, make_llama, make_prompts

SMALL = [make_llama(vocab, seed=vocab) for vocab in (7, 12, 40, 200)]


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


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_transformers_over_random_settings(seed):
    rng = np.random.default_rng(seed)
    ended = total = 0
    for _ in range(150):
        model = SMALL[rng.integers(len(SMALL))]
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


@pytest.mark.parametrize("kind", INPUTS)
def test_topk_gives_the_values_of_torch_and_of_equal_ones_the_first(kind):
    """Sizes and k on both sides of what is searched by blocks."""
    rng = np.random.default_rng(0)
    sizes = [(int(rng.integers(1, 130)), float(rng.choice([1, 1.5, 3, 20, 70]))) for _ in range(300)]
    for n, k in [*((int(k * factor) + 1, k) for k, factor in sizes), (64, 64), (65, 64), (63, 1), (96_000, 6)]:
        values = INPUTS[kind](rng, n).astype(np.float32)
        places = topk(values, k)
        np.testing.assert_array_equal(values[places], torch.topk(torch.from_numpy(values), k)[0].numpy())
        np.testing.assert_array_equal(places, np.lexsort((np.arange(n), -values))[:k])
