"""Requests with settings of their own in a running batch: texts equal to those alone, cancelled, begun again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from r2gen_export.errors import R2GenError
from r2gen_export.reporting.report import Report
from r2gen_export.runtime.drafting.drafter import Drafter
from r2gen_export.runtime.drafting.ngrams import SortedNgrams
from r2gen_export.runtime.loaded_model import ModelStages
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.runtime.requests import Done, Piece, RunningRequests, try_model
from tests.serving.http_site import demo_pipeline, pictures

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"num_beams": 3, "max_new_tokens": 30},
    {"seed": 5, "temperature": 1.3, "max_new_tokens": 20},
    {"repetition_penalty": 1.2, "semantics": "hf-4.30"},
    {"num_beams": 5, "max_new_tokens": 12},
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return pictures(tmp_path_factory.mktemp("phantoms"), 3)


@pytest.fixture(scope="module")
def loaded() -> Pipeline:
    return demo_pipeline()


@pytest.fixture
def pipeline(loaded: Pipeline) -> Iterator[Pipeline]:
    most = loaded.model.most
    yield loaded
    loaded.model.most = most


@pytest.fixture(scope="module")
def alone(loaded: Pipeline, images: list[Path]) -> list[Report]:
    return [loaded.generate(images[number % 3], **settings) for number, settings in enumerate(SETTINGS * 2)]


def add(requests: RunningRequests, pipeline: Pipeline, number: int, image: Path, *, streams: bool = True) -> None:
    settings = pipeline.settings(**SETTINGS[number % len(SETTINGS)])
    requests.add(number, ModelStages(pipeline.model, settings).prepare(1, image), settings, streams=streams)


def run(requests: RunningRequests) -> tuple[dict[int, Done], dict[int, str]]:
    """To the end: what became of each, and its pieces."""
    done: dict[int, Done] = {}
    texts: dict[int, str] = {}
    while not requests.idle:
        for event in requests.step():
            if isinstance(event, Piece):
                assert event.key not in done
                texts[event.key] = texts.get(event.key, "") + event.text
            else:
                done[event.key] = event
    return done, texts


def text_of(done: Done) -> str:
    assert done.report is not None, done.error
    return done.report.text


def test_texts_are_those_alone(pipeline: Pipeline, images: list[Path], alone: list[Report]) -> None:
    requests = RunningRequests(pipeline.model, studies=4, most_beams=3, most_tokens=120)
    for number in range(10):
        add(requests, pipeline, number, images[number % 3], streams=number != 5)
    done, texts = run(requests)
    assert [text_of(done[number]) for number in range(10)] == [report.text for report in alone]
    assert [texts[number] for number in range(10) if number != 5] == [
        report.text for number, report in enumerate(alone) if number != 5
    ]
    assert texts[5] == ""
    together = [done[number].report.batch_size for number in range(10)]  # type: ignore[union-attr]
    assert max(together) > 1
    assert together[2] == together[4] == 1, "a sampled one and one of too many beams run alone"


def test_one_that_leaves_changes_no_other(pipeline: Pipeline, images: list[Path], alone: list[Report]) -> None:
    requests = RunningRequests(pipeline.model, studies=4, most_beams=3, most_tokens=120)
    for number in (0, 1, 3, 5, 6):
        add(requests, pipeline, number, images[number % 3])
    for _ in range(8):
        requests.step()
    for number in (0, 1, 6, 99):  # running, running with beams, waiting or running, not there
        requests.cancel(number)
    done, _ = run(requests)
    assert {number: text_of(outcome) for number, outcome in done.items()} == {n: alone[n].text for n in (3, 5)}


def test_drafts_are_verified_alone_and_beside_others(
    pipeline: Pipeline, images: list[Path], alone: list[Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that comes while another runs with drafts joins it at the next step."""
    known = [list(alone[number].token_ids) for number in (0, 3, 5)]
    drafter = Drafter([SortedNgrams.build(known)], vocab_size=pipeline.manifest.dims.vocab_size)
    monkeypatch.setattr(drafter.pace, "best", lambda studies, rows=1: max(map(len, studies), default=0))
    monkeypatch.setattr(pipeline.model, "drafter", drafter)
    requests = RunningRequests(pipeline.model, studies=4, most_beams=3, most_tokens=120)
    add(requests, pipeline, 0, images[0])
    done, texts = run(requests)
    report = done[0].report
    assert report is not None and report.passes < len(report.token_ids) // 2
    assert (report.text, texts[0]) == (alone[0].text, alone[0].text)
    add(requests, pipeline, 0, images[0])
    events = [event for _ in range(2) for event in requests.step()]
    assert not any(isinstance(event, Done) for event in events)
    for number in (1, 3, 5):
        add(requests, pipeline, number, images[number % 3])
    done, _ = run(requests)
    assert [text_of(done[number]) for number in (0, 1, 3, 5)] == [alone[number].text for number in (0, 1, 3, 5)]
    reports = [done[number].report for number in (0, 3, 5)]
    assert all(report is not None and report.batch_size > 1 and report.accepted > 0 for report in reports)


def test_out_of_memory_begins_again_and_repeats_no_piece(
    pipeline: Pipeline, images: list[Path], alone: list[Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = RunningRequests(pipeline.model, studies=4, most_beams=3, most_tokens=120)
    for number in (0, 1, 3, 5):
        add(requests, pipeline, number, images[number % 3])
    events = [event for _ in range(10) for event in requests.step()]
    assert requests.decoding > 1
    assert requests._batch is not None

    def full(*_: Any) -> Any:
        raise R2GenError("R2G-RESOURCE-MEMORY", "there is none")

    monkeypatch.setattr(requests._batch, "step", full)
    done, texts = run(requests)
    for event in reversed(events):
        if isinstance(event, Piece):
            texts[event.key] = event.text + texts.get(event.key, "")
    assert pipeline.model.most == 2
    for number in (0, 1, 3, 5):
        assert text_of(done[number]) == texts[number] == alone[number].text


def test_another_error_lets_each_be_decoded_alone(
    pipeline: Pipeline, images: list[Path], alone: list[Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = RunningRequests(pipeline.model, studies=4, most_beams=3, most_tokens=120)
    for number in (0, 3):
        add(requests, pipeline, number, images[number % 3])
    requests.step()
    monkeypatch.setattr(requests._batch, "step", lambda: 1 / 0)
    done, _ = run(requests)
    assert [text_of(done[number]) for number in (0, 3)] == [alone[0].text, alone[3].text]
    assert all(outcome.report is not None and outcome.report.batch_size == 1 for outcome in done.values())


def test_the_trial_pass_sees_other_logits(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    readiness = try_model(pipeline.model)
    assert readiness.difference is not None and readiness.difference <= readiness.tolerance
    encode = pipeline.model.vision.encode
    monkeypatch.setattr(pipeline.model.vision, "encode", lambda pixels: encode(pixels) * 1.5)
    with pytest.raises(R2GenError, match="R2G-DEVICE-UNAVAILABLE"):
        try_model(pipeline.model)
