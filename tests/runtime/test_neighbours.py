"""Decoders that round activations to 8 bits: no report depends on what is decoded beside it, nor on drafts."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality.decoder_precision import read_llama, write_bundle
from r2gen_export.bundle import demo_bundle, load_manifest
from r2gen_export.candidates import Reason
from r2gen_export.errors import R2GenError
from r2gen_export.reporting.report import Report
from r2gen_export.runtime.backends import cpu_timing
from r2gen_export.runtime.backends.row_check import rows_agree
from r2gen_export.runtime.backends.tuning import BATCH, SINGLE
from r2gen_export.runtime.drafting.store import FOLDER, Learned
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.runtime.requests import Done, RunningRequests
from tests.conftest import TinySources
from tests.helpers.shared import key_of, made_once

PHANTOM = Path(__file__).parents[1] / "data/phantom.png"
ROOT = Path(__file__).parents[2]


def bundle_in(precision: str) -> Path:
    """The demo with its trained decoder in another precision."""
    sources = (ROOT / "benchmarks/quality/decoder_precision.py", demo_bundle() / "manifest.json")
    return made_once(
        f"demo in {precision}",
        lambda out: write_bundle(read_llama(demo_bundle()), precision, out),
        key=key_of(*sources),
    )


@pytest.fixture(scope="module")
def openvino_bundle(tiny_sources: TinySources) -> Path:
    """In dialect `ort`, which OpenVINO reads."""

    def export(out: Path) -> None:
        from r2gen_export.exporting.export import export_bundle
        from r2gen_export.exporting.settings import ExportSettings

        sources = {"checkpoint": tiny_sources.checkpoint, "vision": tiny_sources.vision, "llm": tiny_sources.llm}
        export_bundle(ExportSettings(**sources, out=out, default_preset="fast", target="cpu", precision="int4"))

    return made_once("tiny in int4", export)


@pytest.fixture(params=["int8", "int4", "int4-128", "OpenVINO"])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    if request.param == "OpenVINO":
        return Pipeline.from_bundle(request.getfixturevalue("openvino_bundle"), device="openvino")
    return Pipeline.from_bundle(bundle_in(request.param), device="cpu", threads=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Eight that differ."""
    picture = Image.open(PHANTOM).convert("L")
    folder = tmp_path_factory.mktemp("images")
    for number in range(8):
        picture.rotate(3 * number).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


class Noisy:
    """A decoder that adds to the logits of a pass over more than one row, as one that sums in another order would."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.row_lengths = decoder.row_lengths

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def open_rows(self, rows: int, positions: int) -> Any:
        state = self._decoder.open_rows(rows, positions)
        advance = state.advance
        state.advance = lambda embeds: advance(embeds) + np.float32(1e-6 if len(embeds) > 1 else 0)
        return state

    def prefill(self, embeds: Any, room: int) -> Any:
        state = self._decoder.prefill(embeds, room)
        decode = state.decode

        def noisy(following: Any) -> None:
            decode(following)
            state._logits = state._logits + np.float32(1e-6 if len(following) > 1 else 0)

        state.decode = noisy
        return state


@pytest.mark.parametrize("row_lengths", [True, False])
def test_the_last_bit_counts(row_lengths: bool) -> None:
    model = Pipeline.from_bundle(bundle_in("int4"), device="cpu", threads=1).model
    model.decoder.row_lengths = row_lengths
    vocab_size = model.manifest.dims.vocab_size
    assert not rows_agree(Noisy(model.decoder), model.embed_tokens, vocab_size)  # type: ignore[arg-type]
    assert not rows_agree(Noisy(model.decoder), model.embed_tokens, vocab_size, rows=30)  # type: ignore[arg-type]


def agree(pipeline: Pipeline, rows: int) -> bool:
    model = pipeline.model
    return rows_agree(model.decoder, model.embed_tokens, pipeline.manifest.dims.vocab_size, rows=rows)


def refusals(report: Report | None) -> list[str]:
    assert report is not None
    return [one.name for one in report.backends if one.reason is Reason.not_exact]


@pytest.mark.parametrize("beams", [1, 3])
def test_reports_of_a_batch_are_those_alone_to_the_last_bit(pipeline: Pipeline, images: list[Path], beams: int) -> None:
    settings = {"num_beams": beams, "max_new_tokens": 30}
    reports = [outcome.unwrap() for outcome in pipeline.generate_many(images, **settings)]
    for image, report in zip(images, reports, strict=True):
        alone = pipeline.generate(image, **settings)
        assert (report.token_ids, report.logprobs, report.score) == (alone.token_ids, alone.logprobs, alone.score)
    if agree(pipeline, 8 * beams):
        assert (max(report.batch_size for report in reports), refusals(reports[-1])) == (8, [])
    else:
        assert (max(report.batch_size for report in reports), refusals(reports[-1])) == (1, ["batches"])


@pytest.mark.parametrize("precision", ["int8", "int4", "int4-128"])
def test_requests_of_a_service_too(precision: str, images: list[Path]) -> None:
    pipeline = Pipeline.from_bundle(bundle_in(precision), device="cpu", threads=1)
    running = RunningRequests(pipeline.model, studies=8, most_beams=3, most_tokens=120)
    beams = [3 if number % 3 == 2 else 1 for number in range(len(images))]
    for number, image in enumerate(images):
        running.add(number, _prepared(pipeline, image), pipeline.settings(num_beams=beams[number]))
    done: dict[int, Done] = {}
    while not running.idle:
        done |= {event.key: event for event in running.step() if isinstance(event, Done)}
    together = agree(pipeline, 24)
    assert running.together == (8 if together else 1)
    for number, image in enumerate(images):
        alone = pipeline.generate(image, num_beams=beams[number])
        report = done[number].report
        assert report is not None
        assert (report.token_ids, report.logprobs) == (alone.token_ids, alone.logprobs)
        assert (report.batch_size > 1) == together
        assert refusals(report) == ([] if together else ["batches"])


def test_a_test_that_fails_is_no_test_that_passed(images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.from_bundle(bundle_in("int4"), device="cpu", threads=1)
    opened = pipeline.model.decoder.open_rows

    def without_memory(rows: int, positions: int) -> Any:
        raise R2GenError("R2G-RESOURCE-MEMORY", "no memory", "less")

    monkeypatch.setattr(pipeline.model.decoder, "open_rows", without_memory)
    assert pipeline.model.together(8, 1) == 1
    monkeypatch.setattr(pipeline.model.decoder, "open_rows", opened)
    reports = [outcome.unwrap() for outcome in pipeline.generate_many(images[:3], num_beams=1)]
    assert [report.batch_size for report in reports] == [1, 1, 1]
    (refused,) = [one for one in reports[0].backends if one.reason is Reason.not_exact]
    assert "R2G-RESOURCE-MEMORY" in refused.message


def test_no_more_rows_are_decoded_together_than_are_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.from_bundle(bundle_in("int8"), device="cpu", threads=1)
    tested: list[int] = []

    def test(*arguments: Any, rows: int) -> bool:
        tested.append(rows)
        return True

    monkeypatch.setattr("r2gen_export.runtime.loaded_model.rows_agree", test)
    studies = [pipeline.model.together(size, beams) for size, beams in ((4, 1), (2, 1), (1000, 3), (8, 3), (1, 3))]
    assert studies == [4, 2, 21, 8, 1]
    assert tested == [4, 63]
    (sampled,) = pipeline.generate_many([PHANTOM], batch_size=1000, do_sample=True, num_beams=1, max_new_tokens=20)
    assert sampled.unwrap().batch_size == 1
    assert tested == [4, 63], "sampled studies are decoded one by one"


def test_tune_times_batches_as_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_in("int8")
    monkeypatch.setattr(cpu_timing, "rows_agree", lambda *arguments: False)
    found = cpu_timing.measure(bundle, load_manifest(bundle))
    for single in found.of(SINGLE):
        for batch in found.of(BATCH):
            if (batch.backend, batch.threads) == (single.backend, single.threads):
                assert batch.report_ms == pytest.approx(8 * single.report_ms)


def test_drafts_stay_with_a_study_that_runs_by_itself() -> None:
    """Beside one that has drafts, all others would get passes of its width."""
    for precision, wide in (("fp32", True), ("int8", False), ("int4-f16", False)):
        model = Pipeline.from_bundle(bundle_in(precision), device="cpu", threads=1).model
        assert model.decoder.row_lengths
        assert model.decoder.wide_rows == wide


def _prepared(pipeline: Pipeline, image: Path) -> Any:
    from r2gen_export.runtime.loaded_model import ModelStages

    return ModelStages(pipeline.model, pipeline.settings(num_beams=1)).prepare(1, image)


def test_fp32_is_not_asked(images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last bits choose no token."""
    pipeline = Pipeline.from_bundle(bundle_in("fp32"), device="cpu", threads=1)
    pipeline.model.decoder = Noisy(pipeline.model.decoder)  # type: ignore[assignment]
    reports = [outcome.unwrap() for outcome in pipeline.generate_many(images, num_beams=1)]
    assert max(report.batch_size for report in reports) == 8


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_a_store_is_used_where_tokens_stay_the_same(tmp_path: Path, precision: str) -> None:
    bundle = Path(shutil.copytree(bundle_in(precision), tmp_path / "bundle"))
    (bundle / FOLDER).mkdir()
    options: dict[str, Any] = {"device": "cpu", "threads": 1}
    plain = Pipeline.from_bundle(bundle, draft=False, **options).generate(PHANTOM, preset="fast")
    Pipeline.from_bundle(bundle, draft=True, **options).generate(PHANTOM, preset="fast")  # is learned
    told = Pipeline.from_bundle(bundle, draft=True, learn=False, **options).generate(PHANTOM, preset="fast")
    left = Pipeline.from_bundle(bundle, learn=False, **options).generate(PHANTOM, preset="fast")
    assert told.drafted > 0
    refused = [one for one in left.backends if one.reason is Reason.not_exact]
    assert left.token_ids == plain.token_ids
    if precision == "fp32":
        assert left.drafted > 0 and not refused
    else:
        assert left.drafted == 0
        assert [dataclasses.astuple(one)[:3] for one in refused] == [("drafts", "decoder", False)]
    before = Learned(bundle).read()
    Pipeline.from_bundle(bundle, **options).generate(PHANTOM, preset="fast")
    assert len(Learned(bundle).read()) == len(before) + 1, "it is added to where it is not used, too"
