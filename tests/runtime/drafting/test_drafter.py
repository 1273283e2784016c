"""Drafts change how many passes a report takes and never a token of it: wrong, foreign and hostile ones included."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from r2gen_export.decoding import Decoding
from r2gen_export.runtime.decoding.generate import generate
from r2gen_export.runtime.decoding.sequence import TokenEvent
from r2gen_export.runtime.drafting.drafter import MOST, Drafter, Pace
from r2gen_export.runtime.drafting.ngrams import FRESH_REPORTS, LONGEST, START, FreshNgrams, SortedNgrams

VOCAB = 23


class ContextModel:
    """A language model by table: logits are random numbers drawn from the prompt and the last two tokens.

    Its wide passes are exact, so that any difference is the drafting's.
    """

    def __init__(self, seed: int, sharpness: float) -> None:
        rng = np.random.default_rng(seed)
        self._table = rng.normal(0, sharpness, (7, VOCAB, VOCAB)).astype(np.float32)
        self.passes: list[int] = []

    def lookup(self, ids: np.ndarray) -> np.ndarray:
        return np.asarray(ids, np.float32)[..., None]

    def prefill(self, inputs_embeds: np.ndarray, room: int) -> ContextState:
        assert len(inputs_embeds) == 1
        return ContextState(self, int(inputs_embeds[0, 0, 0]), room)

    def logits_behind(self, start: int, ids: Sequence[int]) -> np.ndarray:
        last, before = ([start, *ids][-1], [0, start, *ids][-2])
        return self._table[before % 7, last % VOCAB] + self._table[(start + len(ids)) % 7, before % VOCAB]


class ContextState:
    def __init__(self, model: ContextModel, start: int, room: int) -> None:
        self._model, self._start, self._room = model, start, room
        self._ids: list[int] = []
        self.logits = model.logits_behind(start, [])[None]

    def extend(self, embeds: np.ndarray) -> np.ndarray:
        found = []
        self._model.passes.append(embeds.shape[1])
        for token in embeds[0, :, 0].astype(int).tolist():
            assert 0 <= token < VOCAB
            self._ids.append(token)
            found.append(self._model.logits_behind(self._start, self._ids))
        assert len(self._ids) <= self._room
        self.logits = found[-1][None]
        return np.stack(found)[None]

    def decode(self, embeds: np.ndarray) -> None:
        self.extend(embeds)

    def rollback(self, count: int) -> None:
        if count:
            del self._ids[-count:]

    def reorder(self, rows: np.ndarray) -> None:
        assert rows.tolist() == [0]


def run(model: ContextModel, start: int, decoding: Decoding, semantics: str, eos: int, **more):
    prompt = np.full((1, 3, 1), start, np.float32)
    return generate(
        model, model, prompt, decoding, bos_token_id=1, eos_token_id=eos, semantics=semantics, **more
    )[0]  # fmt: skip


def random_decoding(rng: np.random.Generator) -> Decoding:
    most = int(rng.integers(1, 40))
    sampling = bool(rng.integers(3) == 0)
    return Decoding(
        num_beams=1,
        min_new_tokens=int(rng.integers(0, most + 1)) if rng.integers(2) else 0,
        max_new_tokens=most,
        repetition_penalty=float(rng.choice([1.0, 1.0, 1.3, 2.0, 0.7])),
        no_repeat_ngram_size=0 if sampling else int(rng.choice([0, 0, 1, 2, 3, 4])),
        do_sample=sampling,
        temperature=float(rng.choice([1.0, 0.5])) if sampling else 1.0,
        top_k=int(rng.choice([0, 5])) if sampling else 0,
        seed=int(rng.integers(1000)) if sampling else None,
    )


def random_store(rng: np.random.Generator, right: Sequence[int], eos: int) -> list[list[int]]:
    """What a store may hold: the report itself, almost it, parts of it, other ids, ids of another vocabulary."""
    kinds = rng.choice(
        ["right", "mutated", "cut", "shuffled", "random", "ends", "foreign", "empty"], rng.integers(0, 5)
    )
    store = []
    for kind in kinds:
        one = list(right)
        if kind == "mutated":
            one[rng.integers(len(one))] = int(rng.integers(VOCAB))
        elif kind == "cut":
            one = one[int(rng.integers(len(one))) :]
        elif kind == "shuffled":
            rng.shuffle(one)
        elif kind == "random":
            one = rng.integers(0, VOCAB, 30).tolist()
        elif kind == "ends":
            one = [eos] * 5
        elif kind == "foreign":
            one = [right[0], VOCAB, 10**6, START, *right]
        elif kind == "empty":
            one = []
        store.append(one)
    return store


@pytest.mark.parametrize("part", range(4))
def test_tokens_are_those_of_plain_decoding(part):
    """4 x 750 random models, settings and stores; each report is also drafted again from what was learned."""
    rng = np.random.default_rng(part)
    accepted = drafted = ended = 0
    for trial in range(750):
        model = ContextModel(int(rng.integers(2**32)), float(rng.choice([0.3, 1.0, 3.0])))
        decoding, eos, start = random_decoding(rng), int(rng.integers(VOCAB)), int(rng.integers(50))
        semantics = str(rng.choice(["hf-current", "hf-4.30"]))
        plain = run(model, start, decoding, semantics, eos)
        drafter = Drafter(
            [SortedNgrams.build(random_store(rng, plain.token_ids, eos)) for _ in range(rng.integers(0, 3))],
            vocab_size=VOCAB,
            most=int(rng.integers(1, MOST + 1)),
        )
        if rng.integers(2):
            drafter.pace.best = lambda studies, rows=1: max(map(len, studies))  # always as many as there are
        for _ in range(2):
            events: list[TokenEvent] = []
            model.passes.clear()
            found = run(model, start, decoding, semantics, eos, drafter=drafter, on_token=events.append)
            assert found.token_ids == plain.token_ids, (part, trial)
            assert found.logprobs == plain.logprobs
            assert found.finish_reason == plain.finish_reason
            assert [event.token_id for event in events] == list(plain.token_ids)
            assert [event.step for event in events] == list(range(len(events)))
            assert len(model.passes) == len(found.decode_ms)
            assert sum(model.passes) == found.drafted + len(found.decode_ms)
            # A draft that ends the report leaves the token its pass would have given besides.
            assert 0 <= 1 + len(found.decode_ms) + found.accepted - len(plain.token_ids) <= 1
            drafter.learn(found.token_ids)
        accepted, drafted, ended = (
            accepted + found.accepted,
            drafted + found.drafted,
            ended + (found.finish_reason == "eos"),
        )
    assert 0 < accepted < drafted
    assert 100 < ended < 700


def test_a_known_report_takes_few_passes():
    model = ContextModel(5, 2.0)
    decoding = Decoding(num_beams=1, min_new_tokens=60, max_new_tokens=60, repetition_penalty=1.2)
    plain = run(model, 3, decoding, "hf-current", 2)
    drafter = Drafter(vocab_size=VOCAB)
    drafter.learn(plain.token_ids)
    drafter.pace.time = lambda *_: None  # type: ignore[method-assign] - not this machine's times
    found = run(model, 3, decoding, "hf-current", 2, drafter=drafter)
    assert found.token_ids == plain.token_ids
    assert len(plain.decode_ms) == 59
    assert len(found.decode_ms) < 15


def test_hopeless_drafts_are_given_up():
    """Every draft is wrong: after a while none is made, so that the report costs no more than without."""
    model = ContextModel(6, 2.0)
    decoding = Decoding(num_beams=1, min_new_tokens=300, max_new_tokens=300, repetition_penalty=1.0)
    plain = run(model, 3, decoding, "hf-current", 2)
    wrong = SortedNgrams.build([[(token + 1) % VOCAB for token in plain.token_ids]])

    class Wrong:
        def longest(self, context):
            return 2, (int(wrong.arrays[0][1]) + len(context)) % VOCAB

    drafter = Drafter([Wrong()], vocab_size=VOCAB)
    for width in range(1, 10):
        for _ in range(50):
            drafter.pace.time(width, 10.0 + 2 * width)
    drafter.pace.time = lambda *_: None  # type: ignore[method-assign] - not this machine's times
    first = run(model, 3, decoding, "hf-current", 2, drafter=drafter)
    second = run(model, 3, decoding, "hf-current", 2, drafter=drafter)
    assert first.token_ids == second.token_ids == plain.token_ids
    assert first.drafted > 0
    assert second.drafted - second.accepted < 40


def naive_longest(sequences: list[list[int]], context: list[int]) -> tuple[int, dict[int, float]]:
    whole = [[START, *sequence] for sequence in sequences]
    total = sum(map(len, whole))
    for size in range(min(LONGEST, len(context)), 0, -1):
        votes: dict[int, float] = {}
        offset = 0
        for one in whole:
            for end in range(1, len(one)):
                if end >= size and one[end - size : end] == context[-size:]:
                    votes[one[end]] = votes.get(one[end], 0.0) + 1 + (offset + end) / total
            offset += len(one)
        if votes:
            return size, votes
    return 0, {}


def test_sorted_ngrams_find_what_a_plain_search_finds():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        sequences = [rng.integers(0, 4, rng.integers(0, 30)).tolist() for _ in range(rng.integers(0, 8))]
        index = SortedNgrams.build(sequences)
        for _ in range(10):
            context = [START, *rng.integers(0, 4, rng.integers(0, 12)).tolist()][-LONGEST:]
            size, votes = naive_longest(sequences, context)
            found = index.longest(context)
            if not size:
                assert found is None
                continue
            hits += 1
            assert found is not None
            assert found[0] == size
            assert votes[found[1]] == pytest.approx(max(votes.values()))
    assert hits > 1000


def test_fresh_ngrams_are_bounded_and_newer_ones_count_more():
    fresh = FreshNgrams()
    fresh.learn([5, 6, 7])
    fresh.learn([5, 6, 8])
    assert fresh.longest([START, 5, 6]) == (3, 8)
    for number in range(3 * FRESH_REPORTS):
        fresh.learn([100 + number, 1, 2])
    assert fresh.longest([5, 6]) is None, "the first reports are forgotten"
    assert fresh.longest([START]) == (1, 100 + 3 * FRESH_REPORTS - 1), "the newest report counts most"
    assert len(fresh._kept) <= FRESH_REPORTS
    assert len(fresh._votes) < 20 * FRESH_REPORTS


def test_pace_weighs_acceptance_against_the_cost_of_width():
    pace = Pace()
    for _ in range(100):
        pace.tried(8, True)
        pace.tried(1, False)
    free, dear = Pace(), Pace()
    for width in range(1, 10):
        for _ in range(20):
            free.time(width, 10.0)
            dear.time(width, 10.0 * width)
    free._held = dear._held = pace._held
    assert free.best([[8] * 8]) == 8
    assert free.best([[8, 8, 1, 8]]) >= 2
    assert dear.best([[1, 1]]) == 0
    assert dear.best([[8] * 8]) == 0, "where each position costs as much as the first, no draft pays"
    assert dear.cost(4) == pytest.approx(40, rel=0.01)
    gaps = Pace()
    for _ in range(20):
        gaps.time(2, 20.0)
        gaps.time(6, 40.0)
    assert gaps.cost(4) == pytest.approx(30)
    assert gaps.cost(9) > 40
    assert gaps.cost(1) < 20
