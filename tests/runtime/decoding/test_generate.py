"""Greedy search against transformers over many random settings; sampling, streaming, and settings that are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from r2gen_export.decoding import Decoding
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.exporting.parity.torch_decoder import TorchDecoder, TorchEmbeddings
from r2gen_export.runtime.decoding.generate import TokenEvent, check_decoding, generate, generate_steps
from tests.helpers.torch_decoder import hf_config, hf_generate, make_llama, make_prompts

GREEDY = Decoding(num_beams=1, min_new_tokens=0, max_new_tokens=20, repetition_penalty=1.0, length_penalty=1.0)
SAMPLED = dataclasses.replace(GREEDY, do_sample=True, seed=0)
MODELS = [make_llama(vocab, seed=vocab) for vocab in (5, 12, 40, 200)]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def run(model, prompts, decoding, eos, **options):
    return generate(
        TorchDecoder(model), TorchEmbeddings(model), prompts, decoding, eos_token_id=eos, bos_token_id=0, **options
    )


def test_greedy_equals_transformers_over_random_settings():
    rng = np.random.default_rng(0)
    ended = total = 0
    for _ in range(200):
        model = MODELS[rng.integers(len(MODELS))]
        vocab = model.config.vocab_size
        prompts = make_prompts(rng, int(rng.integers(1, 5)), int(rng.choice([2, 5, 9])))
        least = int(rng.choice([0, 0, 6]))
        decoding = Decoding(
            num_beams=1,
            min_new_tokens=least,
            max_new_tokens=least + int(rng.choice([1, 8, 25])),
            repetition_penalty=float(rng.choice([1.0, 0.7, 1.2, 2.0])),
            no_repeat_ngram_size=int(rng.choice([0, 0, 1, 2, 3])),
        )
        eos = int(rng.integers(vocab))
        found = run(model, prompts, decoding, eos)
        assert [one.token_ids for one in found] == hf_generate(model, prompts, decoding, eos)["token_ids"], decoding
        assert all((one.token_ids[-1] == eos) == (one.finish_reason == "eos") for one in found)
        ended += sum(one.finish_reason == "eos" for one in found)
        total += len(found)
    assert 0.2 * total < ended < 0.9 * total, "the trials should end both ways"


@pytest.mark.parametrize("decoding", [GREEDY, dataclasses.replace(SAMPLED, top_p=0.9)], ids=["greedy", "sampled"])
def test_row_does_not_depend_on_its_batch_mates(decoding):
    model = MODELS[1]
    lengths = set()
    for seed in range(10):
        prompts = make_prompts(np.random.default_rng(seed), 5, 4)
        together = run(model, prompts, decoding, 3)
        alone = [run(model, prompts[row : row + 1], decoding, 3)[0] for row in range(5)]
        assert [one.token_ids for one in together] == [one.token_ids for one in alone]
        lengths |= {len(one.token_ids) for one in together}
    assert len(lengths) > 2, "rows should end at different steps"


def test_rows_that_end_leave_the_batch():
    model = MODELS[1]
    decoder = TorchDecoder(model)
    prompts = make_prompts(np.random.default_rng(0), 6, 4)
    found = generate(decoder, TorchEmbeddings(model), prompts, SAMPLED, eos_token_id=3, bos_token_id=0)
    passes = [len(one.token_ids) - 1 for one in found]
    assert len(set(passes)) > 1
    assert [len(one.decode_ms) for one in found] == passes
    assert decoder.batch_sizes == [6] + [sum(step < n for n in passes) for step in range(max(passes))]


def test_logprobs_are_the_models_own_and_events_come_as_tokens_do():
    model = MODELS[3]
    prompts = make_prompts(np.random.default_rng(2), 3, 5)
    decoding = dataclasses.replace(GREEDY, repetition_penalty=0.5, min_new_tokens=4)
    events: list[TokenEvent] = []
    found = run(model, prompts, decoding, 1, on_token=events.append)
    assert [event.step for event in events] == sorted(event.step for event in events)
    for row, one in enumerate(found):
        ids = torch.tensor([one.token_ids])
        with torch.no_grad():
            embeds = torch.cat([torch.from_numpy(prompts[row : row + 1]), model.get_input_embeddings()(ids)], dim=1)
            logits = model(inputs_embeds=embeds).logits[:, prompts.shape[1] - 1 : -1]
        wanted = logits.log_softmax(-1).gather(2, ids[:, :, None])[0, :, 0]
        np.testing.assert_allclose(one.logprobs, wanted.numpy(), atol=1e-4)
        mine = [event for event in events if event.row == row]
        assert [(event.token_id, event.logprob) for event in mine] == list(
            zip(one.token_ids, one.logprobs, strict=True)
        )
        assert one.score is None
        assert one.prefill_ms > 0


def test_what_on_token_raises_ends_the_generation():
    decoder = TorchDecoder(MODELS[3])

    def stop(event: TokenEvent) -> None:
        if event.step == 2:
            raise KeyboardInterrupt

    prompts = make_prompts(np.random.default_rng(0), 1, 3)
    with pytest.raises(KeyboardInterrupt):
        generate(decoder, TorchEmbeddings(MODELS[3]), prompts, GREEDY, eos_token_id=1, bos_token_id=0, on_token=stop)
    assert len(decoder.batch_sizes) == 3


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_closed_generation_makes_no_further_pass(steps):
    decoder = TorchDecoder(MODELS[3])
    prompts = make_prompts(np.random.default_rng(0), 1, 3)
    generation = generate_steps(decoder, TorchEmbeddings(MODELS[3]), prompts, GREEDY, eos_token_id=1, bos_token_id=0)
    events = [next(generation) for _ in range(steps)]
    generation.close()
    assert [event.step for event in events] == list(range(steps))
    assert len(decoder.batch_sizes) == steps
    assert list(generation) == []


def test_time_the_caller_takes_with_a_token_is_not_counted(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("r2gen_export.runtime.decoding.generate.perf_counter", lambda: clock[0])

    def handle(event: TokenEvent) -> None:
        clock[0] += 100

    (sequence,) = run(MODELS[3], make_prompts(np.random.default_rng(0), 1, 3), GREEDY, 1, on_token=handle)
    assert clock[0] >= 300
    assert set(sequence.decode_ms) == {0.0}


def test_same_seed_same_sample_and_other_seeds_others():
    prompts = make_prompts(np.random.default_rng(0), 1, 4)
    samples = [
        run(MODELS[3], prompts, dataclasses.replace(SAMPLED, seed=seed), 1)[0].token_ids for seed in (0, 1, 2, 3, 0)
    ]
    assert samples[0] == samples[4]
    assert len(set(samples)) == 4
    unseeded = {run(MODELS[3], prompts, dataclasses.replace(SAMPLED, seed=None), 1)[0].token_ids for _ in range(3)}
    assert len(unseeded) == 3


@pytest.mark.parametrize(
    "changes",
    [{}, {"temperature": 0.6, "top_k": 12}, {"top_p": 0.8}, {"temperature": 2.0, "top_k": 20, "top_p": 0.9}],
    ids=["plain", "temperature, top_k", "top_p", "all"],
)
def test_samples_follow_transformers_distribution(changes):
    """Frequencies of first tokens over 3,000 seeds, against the probabilities transformers would draw from."""
    decoding = dataclasses.replace(SAMPLED, max_new_tokens=1, min_new_tokens=1, **changes)
    model = MODELS[2]
    prompt = make_prompts(np.random.default_rng(1), 1, 4)
    config = hf_config(decoding, 2)
    config._eos_token_tensor = torch.tensor([2])
    with torch.no_grad():
        logits = model(inputs_embeds=torch.from_numpy(prompt)).logits[:, -1]
    empty = torch.zeros((1, 0), dtype=torch.long)
    warped = model._get_logits_processor(config, input_ids_seq_length=0, device="cpu")(empty, logits)
    wanted = warped.softmax(-1)[0].numpy()

    state = TorchDecoder(model).prefill(prompt, 8)

    class Prefilled:
        """One token never changes the state, so that one prefill serves every seed."""

        def prefill(self, inputs_embeds, room):
            return state

    draws = 3000
    counts = np.zeros(40)
    for seed in range(draws):
        seeded = dataclasses.replace(decoding, seed=seed)
        found = generate(Prefilled(), TorchEmbeddings(model), prompt, seeded, eos_token_id=2, bos_token_id=0)
        counts[found[0].token_ids[0]] += 1
    assert counts[wanted == 0].sum() == 0
    assert (wanted > 0).sum() > 3
    likely = wanted > 0
    chi_square = ((counts[likely] - draws * wanted[likely]) ** 2 / (draws * wanted[likely])).sum()
    freedom = likely.sum() - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom), "far from the distribution"


def test_greedy_is_the_limit_of_sampling():
    prompts = make_prompts(np.random.default_rng(3), 2, 4)
    cold = dataclasses.replace(SAMPLED, top_k=1, temperature=3.0)
    assert [one.token_ids for one in run(MODELS[3], prompts, cold, 1)] == [
        one.token_ids for one in run(MODELS[3], prompts, GREEDY, 1)
    ]


def test_sampling_says_when_every_token_is_banned():
    decoding = dataclasses.replace(SAMPLED, no_repeat_ngram_size=1, min_new_tokens=20)
    with pytest.raises(R2GenError, match="no_repeat_ngram_size 1 bans every token after 4") as caught:
        run(MODELS[0], make_prompts(np.random.default_rng(0), 1, 3), decoding, 1)
    assert caught.value.code == "R2G-CONFIG-VALUE"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_beams": 0}, "num_beams 0"),
        ({"num_beams": 2.0}, "num_beams 2.0"),
        ({"num_beams": True}, "num_beams True"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"min_new_tokens": -1}, "min_new_tokens -1"),
        ({"min_new_tokens": 21}, "min_new_tokens 21 is above max_new_tokens 20"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty nan"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"temperature": float("inf")}, "temperature inf"),
        ({"temperature": 1e-40, "do_sample": True}, "temperature 1e-40"),
        ({"repetition_penalty": 1e40}, "repetition_penalty 1e+40"),
        ({"length_penalty": float("nan")}, "length_penalty nan"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"top_p": "0.5"}, "top_p '0.5'"),
        ({"top_k": -3}, "top_k -3"),
        ({"early_stopping": "sometimes"}, "early_stopping 'sometimes'"),
        ({"early_stopping": 1}, "early_stopping 1"),
        ({"seed": -1}, "seed -1"),
        ({"do_sample": True, "num_beams": 3}, "sampling with num_beams 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_out_of_range_are_refused(changes, named):
    with pytest.raises(R2GenError) as caught:
        check_decoding(dataclasses.replace(GREEDY, **changes))
    assert caught.value.code == "R2G-CONFIG-VALUE"
    assert named in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize("shape", [(0, 3, 16), (1, 0, 16), (3, 16)])
def test_prompts_of_another_shape_are_our_bug(shape):
    with pytest.raises(InternalError):
        run(MODELS[0], np.zeros(shape, np.float32), GREEDY, 1)
