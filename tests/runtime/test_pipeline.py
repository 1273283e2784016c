"""`Pipeline`: one study, streams, many studies, real radiographs, weights that are not numbers."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from r2gen_export.bundle import NOTICE, bundle_id, demo_bundle, open_bundle
from r2gen_export.candidates import Candidate, Reason, render
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.reporting.report import STAGES, Report, notice_block
from r2gen_export.runtime.backends.ort_session import out_of_memory
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.runtime.stream import ReportStream
from r2gen_export.system.versions import VERSION
from tests.helpers.bundles import nan_bundle

DATA = Path(__file__).parents[1] / "data"
PHANTOM = DATA / "phantom.png"
REAL = (DATA / "chest-dx-pa.png", DATA / "chest-cr-ap.png")


@pytest.fixture(scope="module")
def demo() -> Pipeline:
    return Pipeline.from_bundle(demo_bundle(), device="cpu", threads=1)


def test_a_report_says_where_it_comes_from(demo: Pipeline) -> None:
    report = demo.generate([PHANTOM, PHANTOM], preset="fast")
    manifest = open_bundle(demo_bundle())
    assert report.bundle_id == bundle_id(manifest)
    assert report.model_id == manifest.model_id
    assert report.decoding == manifest.presets["fast"]
    assert (report.preset, report.semantics) == ("fast", manifest.semantics)
    assert (report.study, report.views, report.batch_size) == (1, 2, 1)
    assert report.execution_provider == "CPUExecutionProvider"
    assert report.provider_steps
    assert NOTICE in report.notice
    assert "phantoms" in report.notice
    assert report.name is None


def test_timings_and_log_probabilities(demo: Pipeline) -> None:
    report = demo.generate(PHANTOM, preset="fast")
    assert set(report.timings_ms) == {*STAGES, "total"}
    assert all(value > 0 for value in report.timings_ms.values())
    assert report.timings_ms["total"] >= sum(report.timings_ms[stage] for stage in STAGES) * 0.999
    assert report.timings_ms["decode"] == pytest.approx(sum(report.decode_steps_ms))
    # The prefill gives the first token, each pass of the decoder one more.
    assert len(report.decode_steps_ms) == len(report.token_ids) - 1
    assert len(report.logprobs) == len(report.token_ids)
    assert all(value <= 0 for value in report.logprobs)
    assert report.finish_reason == "eos"


@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_pieces_and_runners_up_of_each_token(demo: Pipeline, preset: str) -> None:
    report = demo.generate(PHANTOM, preset=preset)
    assert len(report.pieces) == len(report.runner_up) == len(report.token_ids)
    assert "".join(report.pieces).split("</s>")[0].strip() == report.text
    for own, token_id, other in zip(report.logprobs, report.token_ids, report.runner_up, strict=True):
        assert other.token_id != token_id
        assert np.exp(own) + np.exp(other.logprob) <= 1 + 1e-6
        assert other.piece
    assert report.to_dict()["runner_up"][0].keys() == {"token_id", "piece", "logprob"}


def test_views_of_a_study_change_the_report_of_its_mean(demo: Pipeline) -> None:
    one = demo.generate(PHANTOM)
    assert demo.generate([PHANTOM, PHANTOM]).token_ids == one.token_ids
    assert demo.generate(np.asarray(Image.open(PHANTOM).convert("L"))).token_ids == one.token_ids
    assert demo.generate(np.asarray(Image.open(PHANTOM).convert("RGB"))).token_ids == one.token_ids
    assert demo.generate([PHANTOM, REAL[0]]).logprobs != one.logprobs


@pytest.mark.parametrize("image", REAL, ids=lambda path: path.stem)
@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_real_radiographs_give_a_draft(demo: Pipeline, image: Path, preset: str) -> None:
    report = demo.generate(image, preset=preset)
    assert len(report.text.split()) >= 5
    assert NOTICE in report.to_text().replace("\n| ", " ")
    assert (report.score is None) == (preset == "fast")


def test_pieces_of_a_stream_make_the_text(demo: Pipeline) -> None:
    whole = demo.generate(PHANTOM, preset="fast")
    with demo.stream(PHANTOM, preset="fast") as stream:
        pieces = list(stream)
    assert len(pieces) > 5
    assert "".join(pieces).strip() == whole.to_text()
    assert pieces[-1].strip() == notice_block(whole.notice)
    assert stream.report.token_ids == whole.token_ids
    with demo.stream(PHANTOM, preset="paper") as stream:
        assert "".join(stream).strip() == stream.report.to_text()


def test_a_stream_that_fails_after_its_first_words_ends_with_the_notice() -> None:
    def pieces() -> Generator[str, None, Report]:
        yield "The lungs"
        raise R2GenError("R2G-GENERATE-NONFINITE", "a token's scores are not finite")

    stream = ReportStream(pieces(), NOTICE, lambda call: call())
    assert next(stream) == "The lungs"
    assert next(stream).strip() == notice_block(NOTICE)
    with pytest.raises(R2GenError):
        next(stream)


def test_a_report_records_its_images_by_their_bytes(demo: Pipeline, tmp_path: Path) -> None:
    """The file is gone when the report is there: the hash is of what was read."""
    image = Path(shutil.copy(PHANTOM, tmp_path / "doe.png"))
    pixels = np.asarray(Image.open(PHANTOM).convert("L"))
    before = datetime.now(UTC)
    with demo.stream([image, pixels], preset="fast") as stream:
        next(stream)
        image.unlink()
        list(stream)
    report = stream.report
    expected = (PHANTOM.read_bytes(), pixels.tobytes())
    assert report.inputs == tuple(hashlib.sha256(data).hexdigest() for data in expected)
    assert before - timedelta(seconds=1) <= datetime.fromisoformat(report.created) <= datetime.now(UTC)
    assert report.created.endswith("+00:00")
    assert report.r2gen_version == VERSION


def test_a_stream_can_be_left(demo: Pipeline) -> None:
    before = threading.active_count()
    with demo.stream(PHANTOM, num_beams=1, min_new_tokens=200, max_new_tokens=200) as stream:
        assert next(stream)
        with pytest.raises(R2GenError, match="has not ended"):
            _ = stream.report
    assert threading.active_count() == before
    assert list(stream) == []


def test_errors_of_a_stream_come_out_of_it(demo: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(R2GenError) as caught:
        list(demo.stream(tmp_path / "none.png"))
    assert caught.value.code == "R2G-IMAGE-MISSING"


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("preset", ["fast", "paper"])
def test_many_studies_are_what_each_is_alone(demo: Pipeline, batch_size: int, preset: str) -> None:
    studies = [PHANTOM, (PHANTOM, REAL[0]), REAL[0], DATA / "none.png", REAL[1]]
    outcomes = list(demo.generate_many(studies, batch_size=batch_size, preset=preset))
    assert [outcome.study for outcome in outcomes] == [1, 2, 3, 4, 5]
    assert outcomes[3].report is None
    for study, outcome in zip(studies, outcomes, strict=True):
        if outcome.study == 4:
            with pytest.raises(R2GenError, match="study 4, view 1 is not there"):
                outcome.unwrap()
            continue
        assert outcome.unwrap().token_ids == demo.generate(study, preset=preset).token_ids
        assert outcome.unwrap().batch_size <= batch_size


@pytest.mark.parametrize("room", [4, 3, 1])
def test_a_batch_that_does_not_fit_is_halved_and_said(room: int) -> None:
    """The decoder refuses more than `room` rows, as a GPU without memory for them does."""
    pipeline = Pipeline.from_bundle(demo_bundle(), device="cpu", threads=1)
    prefill = pipeline.model.decoder.prefill

    def limited(embeds: NDArray[np.float32], positions: int) -> object:
        if len(embeds) > room:
            raise out_of_memory("prefill needs more", "out of memory")
        return prefill(embeds, positions)

    pipeline.model.decoder.prefill = limited  # type: ignore[method-assign, assignment]
    studies = [PHANTOM, REAL[0], REAL[1], PHANTOM, (PHANTOM, REAL[0])]
    reports = [outcome.unwrap() for outcome in pipeline.generate_many(studies, batch_size=5, preset="fast")]
    expected = Pipeline.from_bundle(demo_bundle(), device="cpu", threads=1)
    assert [report.token_ids for report in reports] == [
        expected.generate(one, preset="fast").token_ids for one in studies
    ]
    assert max(report.batch_size for report in reports) <= room
    halved = [one for one in reports[-1].backends if one.reason is Reason.out_of_memory]
    assert halved[0] == Candidate(
        "batch of 5", "decoder", False, Reason.out_of_memory, "the GPU's memory does not suffice; 3 at a time"
    )
    assert set(map(render, halved)) <= set(reports[-1].provider_steps)
    again = [outcome.unwrap() for outcome in pipeline.generate_many(studies, batch_size=5, preset="fast")]
    assert [one for one in again[-1].backends if one.reason is Reason.out_of_memory] == halved


def test_sampling_with_a_seed_does_not_depend_on_neighbours(demo: Pipeline) -> None:
    alone = demo.generate(REAL[0], seed=7, temperature=1.5)
    again = list(demo.generate_many([PHANTOM, REAL[0]], seed=7, temperature=1.5))[1].unwrap()
    assert alone.token_ids == again.token_ids
    assert alone.decoding.do_sample
    drawn = demo.generate(REAL[0], temperature=1.5)
    assert drawn.decoding.seed is not None
    assert demo.generate(REAL[0], temperature=1.5, seed=drawn.decoding.seed).token_ids == drawn.token_ids


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"preset": "slow"}, "R2G-CONFIG-VALUE"),
        ({"semantics": "hf-3"}, "R2G-CONFIG-VALUE"),
        ({"beams": 3}, "R2G-CONFIG-VALUE"),
        ({"max_new_tokens": 10_000}, "R2G-CONFIG-VALUE"),
        ({"temperature": 0.5, "num_beams": 3}, "R2G-CONFIG-VALUE"),
        ({"early_stopping": "sometimes"}, "R2G-CONFIG-VALUE"),
    ],
    ids=str,
)
def test_impossible_settings(demo: Pipeline, options: dict[str, object], code: str) -> None:
    with pytest.raises(R2GenError) as caught:
        demo.generate(PHANTOM, **options)
    assert caught.value.code == code


def test_early_stopping_of_every_kind(demo: Pipeline) -> None:
    scores = {
        early: demo.generate(PHANTOM, num_beams=3, length_penalty=2.0, early_stopping=early).score
        for early in (True, False, "never")
    }
    assert all(scores.values())
    assert scores["never"] >= scores[True]  # type: ignore[operator]


def test_bad_images_and_batches(demo: Pipeline) -> None:
    for images, code in (
        ([], "R2G-DATA-EMPTY"),
        (np.zeros((8, 8, 4), np.uint8), "R2G-IMAGE-FORMAT"),
        (np.zeros((8, 8), np.float32), "R2G-IMAGE-FORMAT"),
    ):
        with pytest.raises(R2GenError) as caught:
            demo.generate(images)
        assert caught.value.code == code
    with pytest.raises(R2GenError):
        demo.generate_many([PHANTOM], batch_size=0)


@pytest.mark.parametrize("numbers", [[4, 4], [4]], ids=["twice", "too few"])
def test_a_study_has_a_number_of_its_own(demo: Pipeline, numbers: list[int]) -> None:
    studies = [np.tile(np.arange(64, dtype=np.uint8), (64, 1)), np.tile(np.arange(64, dtype=np.uint8)[::-1], (64, 1))]
    with pytest.raises(InternalError, match="number"):
        list(demo.generate_many(studies, numbers=numbers, batch_size=2, max_new_tokens=2, min_new_tokens=2))


def test_a_bug_in_one_study_does_not_stop_the_others(demo: Pipeline) -> None:
    bad, good = demo.generate_many([[object()], PHANTOM])
    assert isinstance(bad.error, InternalError)
    assert bad.error.exit_status == 1
    assert good.report is not None


def test_nan_in_the_weights_gives_no_report(tmp_path: Path) -> None:
    broken = Pipeline.from_bundle(nan_bundle(tmp_path), device="cpu")
    with pytest.raises(R2GenError) as caught:
        broken.generate(PHANTOM)
    assert caught.value.code == "R2G-GENERATE-NONFINITE"
    outcomes = list(broken.generate_many([PHANTOM, REAL[0]]))
    assert [outcome.error.code for outcome in outcomes if outcome.error] == ["R2G-GENERATE-NONFINITE"] * 2
