"""The likeliest other token of each position, against the probabilities of a whole pass of the model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from r2gen_export.decoding import Decoding
from r2gen_export.exporting.parity.torch_decoder import TorchDecoder, TorchEmbeddings
from r2gen_export.runtime.decoding.generate import generate
from r2gen_export.runtime.decoding.processors import log_softmax
from r2gen_export.runtime.decoding.steps import steps_of_beams, steps_of_logits
from r2gen_export.runtime.drafting.drafter import Drafter
from r2gen_export.runtime.drafting.ngrams import SortedNgrams
from tests.helpers.torch_decoder import make_llama, make_prompts

EOS = 3
GREEDY = Decoding(num_beams=1, min_new_tokens=4, max_new_tokens=14, repetition_penalty=1.5, length_penalty=1.0)
BEAMS = dataclasses.replace(GREEDY, num_beams=3)
WAYS = {
    "greedy": (GREEDY, "hf-current", False),
    "sampled": (dataclasses.replace(GREEDY, do_sample=True, temperature=2.0, seed=1), "hf-current", False),
    "drafted": (GREEDY, "hf-current", True),
    "beams": (BEAMS, "hf-current", False),
    "beams of 4.30": (BEAMS, "hf-4.30", False),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_other_token_is_the_likeliest_but_the_chosen_one(way: str) -> None:
    torch.set_num_threads(1)
    decoding, semantics, draft = WAYS[way]
    model = make_llama(40, seed=2)
    prompts = make_prompts(np.random.default_rng(0), 1 if draft else 3, 5)
    parts = {"eos_token_id": EOS, "bos_token_id": 0, "semantics": semantics}
    embeddings = TorchEmbeddings(model)
    sequences = generate(TorchDecoder(model), embeddings, prompts, decoding, **parts)
    if draft:
        drafter = Drafter([SortedNgrams.build([sequences[0].token_ids])], vocab_size=40)
        plain, sequences = (
            sequences,
            generate(TorchDecoder(model), embeddings, prompts, decoding, drafter=drafter, **parts),
        )
        assert sequences[0].accepted > 0
        assert [other for other, _ in sequences[0].others] == [other for other, _ in plain[0].others]
    above = 0
    for prompt, sequence in zip(prompts, sequences, strict=True):
        ids = torch.tensor([sequence.token_ids])
        embeds = torch.cat([torch.from_numpy(prompt)[None], model.get_input_embeddings()(ids)], dim=1)
        with torch.no_grad():
            logits = model(inputs_embeds=embeds).logits[0, len(prompt) - 1 : -1]  # [n, vocab]
        logprobs = logits.log_softmax(-1).numpy()
        rows = np.arange(len(sequence.token_ids))
        np.testing.assert_allclose(sequence.logprobs, logprobs[rows, sequence.token_ids], atol=1e-4)
        logprobs[rows, sequence.token_ids] = -np.inf
        assert [other for other, _ in sequence.others] == logprobs.argmax(axis=1).tolist()
        np.testing.assert_allclose([value for _, value in sequence.others], logprobs.max(axis=1), atol=1e-4)
        above += sum(other > own for own, (_, other) in zip(sequence.logprobs, sequence.others, strict=True))
    assert above > 0, "the settings should sometimes prefer a token that is not the likeliest"


def test_log_probabilities_of_chosen_tokens_are_those_of_the_whole_rows_to_the_last_bit() -> None:
    rng = np.random.default_rng(1)
    for vocab in (3, 1000, 32000):
        scores = rng.normal(0, 20, (5, vocab)).astype(np.float32)
        scores[1, 2:] = -np.inf
        tokens = rng.integers(0, vocab, 5)
        before, whole = scores.copy(), log_softmax(scores)
        steps = steps_of_logits(scores, tokens)
        np.testing.assert_array_equal(steps["logprob"], whole[np.arange(5), tokens])
        np.testing.assert_array_equal(steps["other_logprob"], whole[np.arange(5), steps["other"]])
        np.testing.assert_array_equal(scores, before, err_msg="the input was changed")


def test_log_probabilities_of_beams_are_unchanged() -> None:
    raw = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], np.float32))
    before = raw.copy()
    steps = steps_of_beams(raw, np.array([0, 0, 1, 1]), np.array([0, 2, 2, 1]))
    assert steps["other"].tolist() == [1, 0, 1, 2]
    np.testing.assert_array_equal(raw, before)
