"""The choice between ONNX Runtime and OpenVINO on the CPU: measured by `r2gen tune` only, read at opening."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r2gen_export.bundle import demo_bundle, load_manifest
from r2gen_export.candidates import Candidate, Reason
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.backends import cpu_timing, decoders, tuning
from r2gen_export.runtime.backends.cpu_timing import measure, setting_count
from r2gen_export.runtime.backends.decoders import choose_cpu_decoder
from r2gen_export.runtime.backends.openvino_decoder import OpenVinoDecoder
from r2gen_export.runtime.backends.ort_decoder import DecoderSession
from r2gen_export.runtime.backends.ort_providers import choose_providers
from r2gen_export.runtime.backends.tuning import (
    BATCH,
    BEAM,
    SINGLE,
    WORKLOADS,
    Timing,
    Tuning,
    read_tuning,
    record_path,
    this_machine,
    workload_of,
    write_tuning,
)
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.system.cache_folder import CACHE_VARIABLE

ROOT = Path(__file__).parents[3]
PHANTOM = ROOT / "tests/data/phantom.png"
ORT, OPENVINO = tuning.ONNX_RUNTIME, tuning.OPENVINO


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def record(bundle: Path, steps_ms: dict[tuple[str, str, int], float]) -> None:
    """A record whose passes take these milliseconds, by workload, backend and threads."""
    manifest = load_manifest(bundle)
    timings = tuple(Timing(*setting, 0.0, step_ms) for setting, step_ms in steps_ms.items())
    write_tuning(manifest, Tuning(tuning.bundle_id(manifest), this_machine(), timings, {}))


def test_openvino_writes_the_same_report(tiny_bundle: Path) -> None:
    found = {device: Pipeline.from_bundle(tiny_bundle, device=device) for device in ("cpu", "openvino")}
    for settings in ({"num_beams": 1}, {"num_beams": 3}, {"num_beams": 1, "do_sample": True, "seed": 5}):
        reports = {name: one.generate(PHANTOM, max_new_tokens=30, **settings) for name, one in found.items()}
        assert reports["openvino"].token_ids == reports["cpu"].token_ids
        np.testing.assert_allclose(reports["openvino"].logprobs, reports["cpu"].logprobs, atol=1e-4)
    assert reports["openvino"].execution_provider == "OpenVINO"
    many = list(found["openvino"].generate_many([PHANTOM] * 3, num_beams=3, max_new_tokens=30))
    beam = found["cpu"].generate(PHANTOM, num_beams=3, max_new_tokens=30)
    assert [one.report.token_ids for one in many if one.report] == [beam.token_ids] * 3


def test_without_a_record_onnx_runtime_decodes_and_nothing_is_measured(tiny_bundle: Path, cache: Path) -> None:
    program = """
import sys
from r2gen_export.runtime.pipeline import Pipeline
report = Pipeline.from_bundle(sys.argv[1]).generate(sys.argv[2], max_new_tokens=3)
print(report.execution_provider, report.backends[-1].reason, report.backends[-1].fix, sep="|")
print("r2gen_export.runtime.backends.cpu_timing" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(tiny_bundle), str(PHANTOM)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert shown.splitlines() == ["CPUExecutionProvider|not-measured|r2gen tune BUNDLE", "False"]
    assert not list(cache.rglob("*.json"))


def test_what_is_measured_is_read_again(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_timing, "HOPELESS", 1e9)
    monkeypatch.setattr(cpu_timing, "_thread_counts", lambda: [2, 1])
    manifest, settings = load_manifest(tiny_bundle), []
    measured = measure(tiny_bundle, manifest, settings.append)
    assert settings == [
        "ONNX Runtime, 2 threads",
        "ONNX Runtime, 1 thread",
        "OpenVINO, 2 threads",
        "OpenVINO, 1 thread",
    ]
    assert len(settings) == setting_count(manifest)
    assert [(one.backend, one.threads, one.workload) for one in measured.timings] == [
        (backend, threads, workload.name) for backend in (ORT, OPENVINO) for threads in (2, 1) for workload in WORKLOADS
    ]
    assert all(one.prefill_ms > 0 and one.step_ms > 0 for one in measured.timings)
    path = write_tuning(manifest, measured)
    assert read_tuning(manifest) == measured
    assert json.loads(path.read_text())["choices"].keys() == {"single", "beam", "batch"}
    other = replace(this_machine(), cpu="another processor")
    monkeypatch.setattr(tuning, "this_machine", lambda: other)
    assert read_tuning(manifest) is None


def test_fewer_threads_that_are_far_slower_are_not_measured_on(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_timing, "HOPELESS", 0.0)
    monkeypatch.setattr(cpu_timing, "_thread_counts", lambda: [2, 1])
    measured = measure(tiny_bundle, load_manifest(tiny_bundle))
    assert [one.workload for one in measured.timings if one.threads == 1] == ["single", "single"]


def test_single_reports_and_batches_may_run_on_different_backends(tiny_bundle: Path) -> None:
    record(
        tiny_bundle,
        {
            ("single", ORT, 2): 10, ("single", ORT, 1): 5, ("single", OPENVINO, 2): 11,
            ("beam", ORT, 2): 10, ("beam", ORT, 1): 9.5, ("beam", OPENVINO, 2): 9.5,
            ("batch", ORT, 2): 10, ("batch", ORT, 1): 20, ("batch", OPENVINO, 2): 8,
        },
    )  # fmt: skip
    single = Pipeline.from_bundle(tiny_bundle)
    assert isinstance(single.model.decoder, DecoderSession)
    assert single.provider.candidates[-2:] == (
        Candidate(
            "OpenVINO", "decoder", False, Reason.measured_slower, "2.20 of ONNX Runtime's time for single reports"
        ),
        Candidate(
            ORT, "decoder", True, Reason.measured_faster, "fastest setting measured for single reports; 1 thread"
        ),
    )
    batch = Pipeline.from_bundle(tiny_bundle, batch=8)
    assert isinstance(batch.model.decoder, OpenVinoDecoder)
    assert batch.provider.name == "OpenVINO"
    assert batch.provider.candidates[-1].reason is Reason.measured_faster
    # Sampled studies are decoded one by one, whatever the batch.
    assert isinstance(Pipeline.from_bundle(tiny_bundle, batch=8, decoding={"seed": 1}).model.decoder, DecoderSession)
    reports = {name: one.generate(PHANTOM, max_new_tokens=20) for name, one in (("1", single), ("8", batch))}
    assert reports["1"].token_ids == reports["8"].token_ids


@pytest.mark.parametrize(
    ("device", "threads", "workload", "expected"),
    [
        ("auto", None, SINGLE, (ORT, 1)),
        ("auto", 2, SINGLE, (ORT, 2)),
        ("auto", None, BEAM, (ORT, 2)),  # 0.95 of its time is within what shared machines drift by
        ("auto", None, BATCH, (OPENVINO, 2)),
        ("cpu", None, BATCH, (ORT, 2)),
        ("openvino", None, SINGLE, (OPENVINO, 2)),
    ],
)
def test_the_record_decides_backend_and_threads(
    tiny_bundle: Path,
    device: str,
    threads: int | None,
    workload: tuning.Workload,
    expected: tuple[str, int],
) -> None:
    record(
        tiny_bundle,
        {
            ("single", ORT, 2): 10, ("single", ORT, 1): 5, ("single", OPENVINO, 2): 11,
            ("beam", ORT, 2): 10, ("beam", ORT, 1): 9.5, ("beam", OPENVINO, 2): 9.5,
            ("batch", ORT, 2): 10, ("batch", OPENVINO, 2): 8,
        },
    )  # fmt: skip
    selected = choose_cpu_decoder(
        load_manifest(tiny_bundle), choose_providers("cpu"), device=device, threads=threads, workload=workload
    )
    assert (selected.backend, selected.threads) == expected


def test_the_workload_of_a_call() -> None:
    rows = {(1, 1): SINGLE, (1, 3): BEAM, (8, 1): BATCH, (2, 3): BATCH}
    assert {key: workload_of(*key) for key in rows} == rows


@pytest.mark.parametrize(
    "content", ["", "{}", "[1, 2]", '{"timings": [{"workload": "single"}]}', '{"schema": "r2gen-tuning/0"}', "negative"]
)
def test_a_record_that_is_none_is_passed_over(tiny_bundle: Path, content: str) -> None:
    record(tiny_bundle, {("single", ORT, 2): 10, ("single", OPENVINO, 2): 1})
    manifest = load_manifest(tiny_bundle)
    path = record_path(manifest, this_machine())
    assert read_tuning(manifest) is not None
    path.write_text(path.read_text().replace('"step_ms": 1', '"step_ms": -1') if content == "negative" else content)
    assert read_tuning(manifest) is None
    assert isinstance(Pipeline.from_bundle(tiny_bundle).model.decoder, DecoderSession)


def test_a_cache_that_cannot_be_written_is_a_coded_error(tiny_bundle: Path, cache: Path) -> None:
    cache.write_text("a file in the way")
    with pytest.raises(R2GenError) as caught:
        record(tiny_bundle, {("single", ORT, 2): 10})
    assert caught.value.code == "R2G-OUTPUT-WRITE"


def test_why_openvino_is_not_considered(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standard = Pipeline.from_bundle(demo_bundle()).provider.candidates[-1]
    assert standard.reason is Reason.unsupported
    assert "a decoder of dialect standard" in standard.message
    with pytest.raises(R2GenError, match=r"not of the ort dialect") as caught:
        Pipeline.from_bundle(demo_bundle(), device="openvino")
    assert caught.value.code == "R2G-BUNDLE-GRAPH"
    record(tiny_bundle, {("single", ORT, 2): 10, ("single", OPENVINO, 2): 1})
    monkeypatch.setattr(decoders, "why_not_openvino", lambda: "the package openvino is not installed")
    refused, taken = Pipeline.from_bundle(tiny_bundle).provider.candidates[-2:]
    assert (refused.reason, refused.fix) == (Reason.not_installed, "pip install 'r2gen[openvino]'")
    assert (taken.name, taken.taken) == (ORT, True)


def test_without_openvino_asking_for_it_is_a_coded_error(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "r2gen_export.runtime.backends.openvino_decoder.importlib.util.find_spec",
        lambda name: None if name == "openvino" else 1,
    )
    with pytest.raises(R2GenError, match="openvino is not installed") as caught:
        Pipeline.from_bundle(tiny_bundle, device="openvino")
    assert caught.value.code == "R2G-DEVICE-UNAVAILABLE"


def test_a_backend_that_fails_is_not_taken(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise R2GenError("R2G-BUNDLE-GRAPH", "model.onnx: OpenVINO does not load it", "")

    monkeypatch.setattr(decoders, "OpenVinoDecoder", fail)
    monkeypatch.setattr(cpu_timing, "_thread_counts", lambda: [1])
    measured = measure(tiny_bundle, load_manifest(tiny_bundle))
    assert measured.skipped == {OPENVINO: "model.onnx: OpenVINO does not load it"}
    assert {one.backend for one in measured.timings} == {ORT}

    record(tiny_bundle, {("single", ORT, 2): 10, ("single", OPENVINO, 2): 1})
    pipeline = Pipeline.from_bundle(tiny_bundle)
    assert isinstance(pipeline.model.decoder, DecoderSession)
    assert pipeline.provider.name == "CPUExecutionProvider"
    assert pipeline.provider.candidates[-1] == Candidate(
        "OpenVINO", "decoder", False, Reason.does_not_load, "model.onnx: OpenVINO does not load it"
    )
