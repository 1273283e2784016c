"""`Pipeline.generate_many` in a running batch: reports, their order, and what becomes of failures."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.continuous_batching import demo_in_trt
from r2gen_export.candidates import Reason
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.phantoms import write_phantoms
from r2gen_export.reporting.report import STAGES, Report
from r2gen_export.runtime.backends.ort_session import out_of_memory
from r2gen_export.runtime.many import AHEAD
from r2gen_export.runtime.pipeline import Pipeline

SETTINGS: tuple[dict[str, Any], ...] = (
    {"num_beams": 1},
    {"num_beams": 3, "repetition_penalty": 1.5},
    {"num_beams": 2, "semantics": "hf-4.30"},
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with a decoder whose cache keeps a length for each row: it writes reports of different length."""
    out = tmp_path_factory.mktemp("many") / "demo"
    demo_in_trt(out)
    return out


@pytest.fixture
def pipeline(bundle: Path) -> Pipeline:
    return Pipeline.from_bundle(bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Twelve studies of one or two views."""
    out = tmp_path_factory.mktemp("phantoms")
    write_phantoms(out, 14, 5, size=224, workers=1, progress=False)
    images = [np.asarray(Image.open(path).convert("L")) for path in sorted(out.glob("images/*/0.png"))]
    return [[images[0], images[1]], *images[2:12], [images[12], images[13]]]


def reports_of(pipeline: Pipeline, studies: Any, batch: int = 4, **options: Any) -> list[Report]:
    options = {"min_new_tokens": 0, "max_new_tokens": 60, **options}
    return [outcome.unwrap() for outcome in pipeline.generate_many(studies, batch_size=batch, **options)]


@pytest.mark.parametrize("settings", SETTINGS, ids=["greedy", "beams", "beams of 4.30"])
def test_reports_are_what_each_study_gets_alone(pipeline: Pipeline, pictures: Any, settings: Any) -> None:
    options = {"min_new_tokens": 0, "max_new_tokens": 60, **settings}
    reports = reports_of(pipeline, pictures, **settings)
    assert [report.study for report in reports] == list(range(1, 13))
    for picture, report in zip(pictures, reports, strict=True):
        expected = pipeline.generate(picture, **options)
        assert report.token_ids == expected.token_ids
        np.testing.assert_allclose(report.logprobs, expected.logprobs, atol=1e-5)
        assert (report.views, report.inputs) == (expected.views, expected.inputs)
        assert 1 <= report.batch_size <= 4
        assert len(report.decode_steps_ms) == len(expected.decode_steps_ms)
        assert report.timings_ms["total"] >= sum(report.timings_ms[stage] for stage in STAGES) * 0.999
    assert len({len(report.token_ids) for report in reports}) > 2, "reports should end at different steps"


def test_images_are_read_while_others_are_decoded(pipeline: Pipeline, pictures: Any, tmp_path: Path) -> None:
    """As with weights on a GPU: in another thread, some studies ahead, and with the same reports and errors."""
    expected = [report.token_ids for report in reports_of(pipeline, pictures, num_beams=1)]
    pipeline.model.provider = dataclasses.replace(pipeline.provider, name="CUDAExecutionProvider")
    assert not pipeline.provider.decodes_on_cpu
    threads: dict[int, str] = {}
    prepare = pipeline.model.prepare

    def named(study: int, *arguments: Any) -> Any:
        threads[study] = threading.current_thread().name
        return prepare(study, *arguments)

    pipeline.model.prepare = named  # type: ignore[method-assign]
    studies = [*pictures[:5], tmp_path / "none.png", *pictures[5:]]
    outcomes = pipeline.generate_many(studies, batch_size=4, num_beams=1, min_new_tokens=0, max_new_tokens=60)
    first = next(outcomes)
    assert len(threads) < 12
    rest = list(outcomes)
    assert [one.study for one in (first, *rest)] == list(range(1, 14))
    assert str(rest[4].error).count("study 6, view 1") == 1
    assert [one.report.token_ids for one in (first, *rest) if one.report] == expected
    assert all(name.startswith("r2gen-read") for name in threads.values())


def test_studies_are_read_as_rows_become_free(pipeline: Pipeline, pictures: Any) -> None:
    """No more are begun than there are rows, and a report is given as soon as those before it are."""
    begun = 0

    def studies() -> Iterator[Any]:
        nonlocal begun
        for picture in pictures:
            begun += 1
            yield picture

    outcomes = pipeline.generate_many(studies(), batch_size=4, num_beams=1, min_new_tokens=0, max_new_tokens=60)
    for number, outcome in enumerate(outcomes, start=1):
        assert outcome.study == number
        assert begun <= min(12, number + AHEAD * 4)
        if number == 1:
            assert begun < 12


def test_a_study_that_takes_long_holds_up_only_so_many(
    pipeline: Pipeline, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Study 1 does not end; finished ones wait for it, and then no further study is begun."""
    pipeline.model.most = 2
    reports = reports_of(pipeline, pictures, batch=2, num_beams=1)
    lengths = [len(report.token_ids) for report in reports]
    longest = lengths.index(max(lengths))
    others = [pictures[lengths.index(min(lengths))]] * 30
    begun: list[int] = []
    prepare = pipeline.model.prepare

    def counted(study: int, *arguments: Any) -> Any:
        begun.append(study)
        return prepare(study, *arguments)

    monkeypatch.setattr(pipeline.model, "prepare", counted)
    first = next(iter(pipeline.generate_many([pictures[longest], *others], batch_size=2, num_beams=1,
                                             min_new_tokens=0, max_new_tokens=60)))  # fmt: skip
    assert first.study == 1
    assert len(begun) <= AHEAD * 2 + 1


def test_failures_are_kept_apart(pipeline: Pipeline, pictures: Any, tmp_path: Path) -> None:
    floats = np.zeros((40, 40), np.float32)
    studies = [pictures[1], tmp_path / "none.png", pictures[2], floats, [object()], *pictures[3:6]]
    outcomes = list(pipeline.generate_many(studies, batch_size=3, num_beams=1, max_new_tokens=20))
    codes = [outcome.error.code if outcome.error else "" for outcome in outcomes]
    assert codes[:3] == ["", "R2G-IMAGE-MISSING", ""]
    assert codes[3] == "R2G-IMAGE-FORMAT"
    assert isinstance(outcomes[4].error, InternalError)
    assert codes[5:] == [""] * 3
    assert "study 2, view 1" in str(outcomes[1].error)


def test_a_study_whose_prompt_is_not_finite_is_named(pipeline: Pipeline, pictures: Any) -> None:
    encode = pipeline.model.vision.encode
    calls = 0

    def spoiled(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal calls
        calls += 1
        return encode(pixels) * (np.nan if calls == 3 else 1)

    pipeline.model.vision.encode = spoiled  # type: ignore[method-assign]
    outcomes = list(pipeline.generate_many(pictures, batch_size=4, num_beams=1, max_new_tokens=20))
    assert [outcome.study for outcome in outcomes if outcome.error] == [3]
    assert isinstance(outcomes[2].error, R2GenError)
    assert outcomes[2].error.code == "R2G-GENERATE-NONFINITE"
    assert outcomes[2].error.message.startswith("study 3")


class Limited:
    """A decoder without memory for more than `rows` rows: `where` it shows."""

    row_lengths = True

    def __init__(self, decoder: Any, rows: int, where: str) -> None:
        self._decoder, self._rows, self._where = decoder, rows, where

    def prefill(self, embeds: Any, room: int) -> Any:
        return self._decoder.prefill(embeds, room)

    def open_rows(self, rows: int, positions: int) -> Any:
        if self._where == "open" and rows > self._rows:
            raise out_of_memory("prefill needs more", "out of memory")
        state = self._decoder.open_rows(rows, positions)
        advance, join = state.advance, state.join

        def limited_join(prompts: Any, row: int) -> Any:
            if self._where == "join" and row >= self._rows:
                raise out_of_memory("prefill needs more", "out of memory")
            return join(prompts, row)

        def limited_advance(embeds: Any) -> Any:
            if self._where == "decode" and len(embeds) > self._rows:
                raise out_of_memory("decode needs more", "out of memory")
            return advance(embeds)

        state.join, state.advance = limited_join, limited_advance
        return state


@pytest.mark.parametrize("where", ["open", "join", "decode"])
def test_where_memory_does_not_suffice_fewer_run_together(pipeline: Pipeline, pictures: Any, where: str) -> None:
    expected = [report.token_ids for report in reports_of(pipeline, pictures, num_beams=1)]
    pipeline.model.decoder = Limited(pipeline.model.decoder, 2, where)  # type: ignore[assignment]
    reports = reports_of(pipeline, pictures, batch=6, num_beams=1)
    assert [report.token_ids for report in reports] == expected
    assert max(report.batch_size for report in reports) == 2
    halved = [one for one in reports[-1].backends if one.reason is Reason.out_of_memory]
    assert halved[-1].message.endswith("2 at a time")


def test_after_a_bug_in_a_pass_each_study_is_decoded_alone(pipeline: Pipeline, pictures: Any) -> None:
    expected = [report.token_ids for report in reports_of(pipeline, pictures, num_beams=1)]
    opened = pipeline.model.decoder.open_rows
    calls = 0

    def breaking(rows: int, positions: int) -> Any:
        state = opened(rows, positions)
        advance = state.advance

        def once(embeds: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 5:
                raise RuntimeError("a bug")
            return advance(embeds)

        state.advance = once  # type: ignore[method-assign]
        return state

    pipeline.model.decoder.open_rows = breaking  # type: ignore[method-assign]
    reports = reports_of(pipeline, pictures, num_beams=1)
    assert [report.token_ids for report in reports] == expected
    assert calls > 5, "the others run together again"
    for times in (report.timings_ms for report in reports):
        assert times["total"] >= sum(spent for stage, spent in times.items() if stage != "total"), "reading is a part"


def test_a_generator_that_is_left_leaves_the_pipeline_usable(pipeline: Pipeline, pictures: Any) -> None:
    outcomes = pipeline.generate_many(pictures, batch_size=4, num_beams=1, max_new_tokens=30)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    expected = pipeline.generate(pictures[2], num_beams=1, max_new_tokens=30).token_ids
    again = list(pipeline.generate_many(pictures[1:4], batch_size=4, num_beams=1, max_new_tokens=30))
    assert again[1].unwrap().token_ids == expected
