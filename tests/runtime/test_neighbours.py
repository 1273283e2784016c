"""Decoders that round activations to 8 bits: no report depends on what is decoded beside it, nor on drafts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality.decoder_precision import read_llama, write_bundle
from r2gen_export.bundle import demo_bundle
from r2gen_export.candidates import Reason
from r2gen_export.runtime.backends.row_check import rows_agree
from r2gen_export.runtime.drafting.store import FOLDER
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.runtime.requests import Done, RunningRequests
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


@pytest.fixture(scope="module", params=["int8", "int4", "int4-128"])
def pipeline(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    yield Pipeline.from_bundle(bundle_in(request.param), device="cpu", threads=1)


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


@pytest.mark.parametrize("beams", [1, 3])
def test_reports_of_a_batch_are_those_alone_to_the_last_bit(pipeline: Pipeline, images: list[Path], beams: int) -> None:
    reports = [outcome.unwrap() for outcome in pipeline.generate_many(images, num_beams=beams)]
    for image, report in zip(images, reports, strict=True):
        alone = pipeline.generate(image, num_beams=beams)
        assert (report.token_ids, report.logprobs, report.score) == (alone.token_ids, alone.logprobs, alone.score)
    refused = [one for one in reports[-1].backends if one.reason is Reason.not_exact]
    agree = rows_agree(pipeline.model.decoder, pipeline.model.embed_tokens, pipeline.manifest.dims.vocab_size, rows=24)
    assert agree == (not refused)
    assert max(report.batch_size for report in reports) == (8 if agree else 1)


def test_requests_of_a_service_too(pipeline: Pipeline, images: list[Path]) -> None:
    running = RunningRequests(pipeline.model, studies=8, most_beams=3, most_tokens=120)
    settings = pipeline.settings(num_beams=1)
    for number, image in enumerate(images):
        outcome = pipeline.settings(num_beams=3) if number % 3 == 2 else settings
        running.add(number, _prepared(pipeline, image), outcome)
    done: dict[int, Done] = {}
    while not running.idle:
        done |= {event.key: event for event in running.step() if isinstance(event, Done)}
    for number, image in enumerate(images):
        alone = pipeline.generate(image, num_beams=3 if number % 3 == 2 else 1)
        report = done[number].report
        assert report is not None
        assert (report.token_ids, report.logprobs) == (alone.token_ids, alone.logprobs)


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
    import shutil

    bundle = Path(shutil.copytree(bundle_in(precision), tmp_path / "bundle"))
    (bundle / FOLDER).mkdir()
    options: dict[str, Any] = {"device": "cpu", "threads": 1}
    plain = Pipeline.from_bundle(bundle, draft=False, **options).generate(PHANTOM, preset="fast")
    Pipeline.from_bundle(bundle, draft=True, **options).generate(PHANTOM, preset="fast")  # is learned
    told = Pipeline.from_bundle(bundle, draft=True, learn=False, **options).generate(PHANTOM, preset="fast")
    left = Pipeline.from_bundle(bundle, learn=False, **options).generate(PHANTOM, preset="fast")
    assert told.accepted > 10
    refused = [one for one in left.backends if one.reason is Reason.not_exact]
    assert left.token_ids == plain.token_ids
    if precision == "fp32":
        assert left.drafted > 10 and not refused
    else:
        assert left.drafted == 0
        assert [dataclasses.astuple(one)[:3] for one in refused] == [("drafts", "decoder", False)]
        assert refused[0].fix == "--draft"
