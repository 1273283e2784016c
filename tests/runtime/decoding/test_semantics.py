"""Semantics `hf-4.30` against token ids that transformers 4.30.2 itself generated (`tests/goldens`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from r2gen_export.decoding import Decoding
from r2gen_export.exporting.parity.torch_decoder import TorchDecoder, TorchEmbeddings
from r2gen_export.runtime.decoding.generate import Sequence, generate
from tests.goldens.hf430 import BOS, VOCABULARIES, Trial, fill, llama_fields, trials

GOLDEN = json.loads((Path(__file__).parents[2] / "goldens/hf430.json").read_text())


@pytest.fixture(scope="module")
def models() -> dict[int, LlamaForCausalLM]:
    torch.set_num_threads(1)
    made = {}
    for vocab in VOCABULARIES:
        made[vocab] = LlamaForCausalLM(LlamaConfig(**llama_fields(vocab))).eval()
        fill(made[vocab], vocab)
    return made


def run(model: LlamaForCausalLM, trial: Trial, semantics: str, prompts: np.ndarray | None = None) -> list[Sequence]:
    return generate(
        TorchDecoder(model),
        TorchEmbeddings(model),
        trial.prompts if prompts is None else prompts,
        Decoding(**trial.settings),
        bos_token_id=BOS,
        eos_token_id=trial.eos_token_id,
        semantics=semantics,
    )


def test_every_trial_gives_what_4_30_2_gave(models: dict[int, LlamaForCausalLM]) -> None:
    assert GOLDEN["transformers"] == "4.30.2"
    ended = total = 0
    for trial, golden in zip(trials(), GOLDEN["trials"], strict=True):
        found = run(models[trial.vocab_size], trial, "hf-4.30")
        assert [list(one.token_ids) for one in found] == golden["token_ids"], trial.settings
        if "scores" in golden:
            np.testing.assert_allclose([one.score for one in found], golden["scores"], rtol=1e-4, atol=1e-5)
        ended += sum(one.finish_reason == "eos" for one in found)
        total += len(found)
    assert 0.2 * total < ended < 0.9 * total, "the trials should end both ways"


def test_the_two_semantics_differ_where_they_should(models: dict[int, LlamaForCausalLM]) -> None:
    """A golden file that today's arithmetic reproduces as well would prove nothing."""
    differing = beams = 0
    for trial in trials():
        if trial.settings["num_beams"] == 1:
            continue
        beams += 1
        old, new = (run(models[trial.vocab_size], trial, semantics) for semantics in ("hf-4.30", "hf-current"))
        differing += [one.token_ids for one in old] != [one.token_ids for one in new]
    assert differing > 0.2 * beams


def test_a_study_does_not_depend_on_its_batch(models: dict[int, LlamaForCausalLM]) -> None:
    for trial in list(trials())[:120]:
        together = run(models[trial.vocab_size], trial, "hf-4.30")
        for row, one in enumerate(together):
            (alone,) = run(models[trial.vocab_size], trial, "hf-4.30", trial.prompts[row : row + 1])
            assert alone.token_ids == one.token_ids


def test_log_probabilities_belong_to_the_tokens(models: dict[int, LlamaForCausalLM]) -> None:
    """Without penalties the score is their sum over (length + 1)^penalty, EOS not counted."""
    checked = 0
    for trial in trials():
        if trial.settings["num_beams"] == 1 or trial.settings["repetition_penalty"] != 1.0:
            continue
        for one in run(models[trial.vocab_size], trial, "hf-4.30"):
            assert len(one.logprobs) == len(one.token_ids)
            assert len(one.decode_ms) >= len(one.token_ids) - 1
            length = len(one.token_ids) - (one.finish_reason == "eos") + 1
            wanted = sum(one.logprobs) / length ** trial.settings["length_penalty"]
            if trial.settings["no_repeat_ngram_size"] == 0 and trial.settings["min_new_tokens"] == 0:
                assert one.score == pytest.approx(wanted, rel=1e-4)
                checked += 1
    assert checked > 20
