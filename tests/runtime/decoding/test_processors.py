"""Every processor and warper against transformers' class of that name, on scores with ties and bans."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from r2gen_export.decoding import Decoding
from r2gen_export.runtime.decoding import processors as ours
from tests.helpers.torch_decoder import hf_config, make_llama

EOS = 2
TRIALS = 40

PAIRS = {
    "repetition_penalty 2.0": (ours.repetition_penalty(2.0), hf.RepetitionPenaltyLogitsProcessor(2.0)),
    "repetition_penalty 0.7": (ours.repetition_penalty(0.7), hf.RepetitionPenaltyLogitsProcessor(0.7)),
    "no_repeat_ngram 1": (ours.no_repeat_ngram(1), hf.NoRepeatNGramLogitsProcessor(1)),
    "no_repeat_ngram 2": (ours.no_repeat_ngram(2), hf.NoRepeatNGramLogitsProcessor(2)),
    "no_repeat_ngram 4": (ours.no_repeat_ngram(4), hf.NoRepeatNGramLogitsProcessor(4)),
    "min_new_tokens": (ours.min_new_tokens(5, EOS), hf.MinNewTokensLengthLogitsProcessor(0, 5, EOS)),
    "temperature 0.3": (ours.temperature(0.3), hf.TemperatureLogitsWarper(0.3)),
    "temperature 1.7": (ours.temperature(1.7), hf.TemperatureLogitsWarper(1.7)),
    "top_k 1": (ours.top_k(1), hf.TopKLogitsWarper(1)),
    "top_k 7": (ours.top_k(7), hf.TopKLogitsWarper(7)),
    "top_k above the vocabulary": (ours.top_k(1000), hf.TopKLogitsWarper(1000)),
    "top_p 0.0": (ours.top_p(0.0), hf.TopPLogitsWarper(0.0)),
    "top_p 0.5": (ours.top_p(0.5), hf.TopPLogitsWarper(0.5)),
    "top_p 0.95": (ours.top_p(0.95), hf.TopPLogitsWarper(0.95)),
}


def random_scores(rng: np.random.Generator, batch: int, vocab: int) -> np.ndarray:
    """Some rows with many equal values, some with bans."""
    scores = rng.normal(0, 3, (batch, vocab)).astype(np.float32)
    if rng.random() < 0.4:
        scores = scores.round()
    if rng.random() < 0.4:
        scores[:, rng.choice(vocab, vocab // 3, replace=False)] = -np.inf
    return scores


@pytest.mark.parametrize("name", PAIRS)
def test_equals_transformers(name):
    edit, theirs = PAIRS[name]
    mine = ours.chain([edit])
    rng = np.random.default_rng(len(name))
    for trial in range(TRIALS):
        batch, vocab, length = int(rng.integers(1, 4)), int(rng.integers(4, 60)), trial % 12
        scores = random_scores(rng, batch, vocab)
        tokens = rng.integers(0, min(vocab, 5), (batch, length))
        before = scores.copy()
        found = mine(tokens, scores)
        wanted = theirs(torch.from_numpy(tokens), torch.from_numpy(scores.copy())).numpy()
        assert found.dtype == np.float32
        if name.startswith("top_p") and len(np.unique(scores)) < scores.size:
            # Which of equally likely tokens torch keeps depends on the machine: its sort is not stable.
            found, wanted = np.sort(found, axis=1), np.sort(wanted, axis=1)
        np.testing.assert_array_equal(found, wanted)
        np.testing.assert_array_equal(scores, before, err_msg="the processor changed its input")


def test_composition_and_order_equal_transformers():
    """Random settings through `_get_logits_processor` itself: what comes first matters, for bans times penalties."""
    rng = np.random.default_rng(3)
    model = make_llama(40)
    for _ in range(80):
        decoding = Decoding(
            num_beams=1,
            do_sample=True,
            min_new_tokens=int(rng.choice([0, 6])),
            repetition_penalty=float(rng.choice([1.0, 0.8, 2.0])),
            no_repeat_ngram_size=int(rng.choice([0, 1, 2])),
            temperature=float(rng.choice([1.0, 0.5, 2.0])),
            top_k=int(rng.choice([0, 5, 20])),
            top_p=float(rng.choice([1.0, 0.9, 0.4])),
        )
        config = hf_config(decoding, EOS)
        config._eos_token_tensor = torch.tensor([EOS])
        theirs = model._get_logits_processor(config, input_ids_seq_length=0, device="cpu")
        tokens = rng.integers(0, 10, (2, int(rng.integers(0, 10))))
        scores = rng.normal(0, 3, (2, 40)).astype(np.float32)
        processed = ours.make_processors(decoding, EOS)(tokens, scores)
        found = ours.make_warpers(decoding)(tokens, processed)
        wanted = theirs(torch.from_numpy(tokens), torch.from_numpy(scores.copy()))
        np.testing.assert_array_equal(found, wanted.numpy())
        np.testing.assert_allclose(ours.softmax(found), wanted.softmax(-1).numpy(), rtol=1e-5)


def test_settings_that_are_off_change_nothing():
    decoding = Decoding(min_new_tokens=0, repetition_penalty=1.0)
    scores = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
    tokens = np.zeros((2, 3), np.int64)
    assert ours.make_processors(decoding, EOS)(tokens, scores) is scores
    assert ours.make_warpers(decoding)(tokens, scores) is scores


def test_log_softmax_equals_torch_also_for_large_and_banned_scores():
    scores = np.random.default_rng(0).normal(0, 50, (4, 3000)).astype(np.float32)
    scores[:, ::7] = -np.inf
    scores[0] += 1e4
    wanted = torch.from_numpy(scores).log_softmax(-1).numpy()
    np.testing.assert_allclose(ours.log_softmax(scores), wanted, rtol=3e-7, atol=1e-5)
