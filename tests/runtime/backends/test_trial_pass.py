"""The trial pass behind loading on a GPU: what each kind of fault there looks like, and what becomes of it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2gen_export.bundle import DECODER, EMBED_TOKENS, VISION, Bundle, demo_bundle, load_manifest, seal
from r2gen_export.candidates import Candidate, Reason
from r2gen_export.errors import R2GenError
from r2gen_export.precision import PRECISIONS, with_half_activations
from r2gen_export.runtime.backends import select as ladder
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.gpu_memory import estimate
from r2gen_export.runtime.backends.ort_decoder import DecoderSession
from r2gen_export.runtime.backends.ort_providers import CPU, CUDA, PLAIN, ProviderChoice, parse_device
from r2gen_export.runtime.backends.ort_vision import VisionSession
from r2gen_export.runtime.backends.placement import require_gpu_kernels
from r2gen_export.runtime.backends.trial_pass import run_trial, tolerance_of, trial_prompt
from r2gen_export.runtime.doctor import bundle_checks
from tests.serving.http_site import demo_pipeline

HOST = {"providers": ["CPUExecutionProvider"], "threads": 1}


class Faulty:
    """A decoder whose passes go wrong in one way, and its states."""

    def __init__(self, decoder: Any, fault: str) -> None:
        self._decoder, self._fault = decoder, fault

    def share_prefix(self, embeds: Any) -> None:
        self._decoder.share_prefix(embeds)

    def prefill(self, embeds: Any, room: int) -> Any:
        blind = self._fault == "reads zeros" or (self._fault == "reads zeros in batches" and len(embeds) > 1)
        return FaultyState(self._decoder.prefill(np.zeros_like(embeds) if blind else embeds, room), self._fault)


class FaultyState:
    def __init__(self, state: Any, fault: str) -> None:
        self._state, self._fault, self._first = state, fault, None

    @property
    def logits(self) -> Any:
        if self._fault == "writes NaN":
            raise R2GenError("R2G-GENERATE-NONFINITE", "logits are NaN")
        return np.zeros_like(self._state.logits) if self._fault == "writes nothing" else self._state.logits

    def decode(self, embeds: Any) -> None:
        if self._fault == "replays the first inputs":
            if self._first is None:
                self._first = embeds
            embeds = np.repeat(self._first[:1], len(embeds), axis=0)
        self._state.decode(embeds)

    def extend(self, embeds: Any) -> Any:
        logits = self._state.extend(embeds)
        return np.zeros_like(logits) if self._fault == "extends with zeros" else logits

    def rollback(self, count: int) -> None:
        if self._fault != "takes nothing back":
            self._state.rollback(count)

    def reorder(self, rows: Any) -> None:
        before = [array.copy() for array in self._state._cache.arrays]
        grows = len(rows) > len(self._state._lengths)
        self._state.reorder(rows)
        arrays = self._state._cache.arrays
        for old, array in zip(before, arrays, strict=True):
            if self._fault == "moves no rows" and grows:
                array[1:] = 0
            if self._fault == "moves no rows in place" and not grows:
                array[...] = old
            if self._fault == "moves the last slot only" and not grows:
                array[:, :, : self._state._lengths[0] - 1] = old[:, :, : self._state._lengths[0] - 1]
            if self._fault == "makes all rows the first" and not grows:
                array[...] = old[:1]


@pytest.fixture(scope="module")
def parts(tiny_bundle: Path) -> tuple[Any, ...]:
    """Prompt, decoder, embeddings and manifest: what `run_trial` takes."""
    manifest, table = load_manifest(tiny_bundle), EmbeddingTable(tiny_bundle / EMBED_TOKENS)
    return (
        trial_prompt(VisionSession(tiny_bundle / VISION, **HOST), table, manifest.prompt, manifest.image),
        DecoderSession(tiny_bundle / DECODER, manifest.dims, **HOST),
        table,
        manifest,
    )


def test_the_exporting_machine_passes_its_own_trial(parts: tuple[Any, ...]) -> None:
    trial = run_trial(*parts)
    assert trial.difference is not None
    assert trial.difference < 1e-5 < trial.tolerance
    assert "within" in str(trial)


@pytest.mark.parametrize(
    "fault",
    [
        *("reads zeros", "reads zeros in batches", "writes nothing", "writes NaN", "replays the first inputs"),
        *("extends with zeros", "takes nothing back", "moves no rows", "moves no rows in place"),
        "makes all rows the first",
    ],
)
def test_a_fault_is_seen(parts: tuple[Any, ...], fault: str) -> None:
    prompt, decoder, table, manifest = parts
    with pytest.raises(R2GenError) as caught:
        run_trial(prompt, Faulty(decoder, fault), table, manifest)
    assert caught.value.code == "R2G-DEVICE-UNAVAILABLE"
    assert "does not compute what was exported" in caught.value.message


class FaultyRows:
    """A decoder that is right with rows of one length, and its states."""

    def __init__(self, decoder: Any, fault: str) -> None:
        self._decoder, self._fault = decoder, fault
        self.row_lengths, self.wide_rows = True, decoder.wide_rows

    def prefill(self, embeds: Any, room: int) -> Any:
        return self._decoder.prefill(embeds, room)

    def open_rows(self, rows: int, positions: int) -> Any:
        state = self._decoder.open_rows(rows, positions)
        advance, join, take_back = state.advance, state.join, state.take_back

        def advance_wrong(embeds: Any) -> Any:
            if self._fault == "gives all rows the longest one's positions":
                state._lengths[:] = state._lengths.max()
            if self._fault == "mixes up wide rows" and embeds.shape[1] > 1:
                return advance(embeds)[:, ::-1]
            return advance(embeds)

        def take_back_wrong(counts: Any) -> None:
            take_back(counts * 0 if self._fault == "takes nothing of a row back" else counts)

        def join_wrong(prompts: Any, row: int) -> Any:
            if self._fault == "does not join":
                raise R2GenError("R2G-DEVICE-UNAVAILABLE", "no pass begins at this row")
            return join(prompts, row)

        state.advance, state.join, state.take_back = advance_wrong, join_wrong, take_back_wrong
        return state


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("gives all rows the longest one's positions", "decode, shorter row"),
        ("does not join", "no pass begins at this row"),
        ("", None),
    ],
)
def test_rows_of_different_length_are_left_alone_where_they_are_wrong(
    parts: tuple[Any, ...], fault: str, message: str | None
) -> None:
    prompt, decoder, table, manifest = parts
    faulty = FaultyRows(decoder, fault)
    trial = run_trial(prompt, faulty, table, manifest)
    assert faulty.row_lengths is (message is None)
    assert (message or "") in trial.rows
    assert ("begin together" in str(trial)) is bool(trial.rows) is bool(fault)


@pytest.mark.parametrize("fault", ["mixes up wide rows", "takes nothing of a row back", ""])
def test_wide_passes_that_are_wrong_are_not_made(fault: str) -> None:
    model = demo_pipeline().model
    prompt = trial_prompt(model.vision, model.embed_tokens, model.manifest.prompt, model.manifest.image)
    faulty = FaultyRows(model.decoder, fault)
    assert faulty.wide_rows
    assert not run_trial(prompt, faulty, model.embed_tokens, model.manifest).rows
    assert faulty.row_lengths
    assert faulty.wide_rows is not bool(fault)


def test_a_fault_of_the_vision_encoder_is_seen(parts: tuple[Any, ...]) -> None:
    prompt, decoder, table, manifest = parts
    blind, first = prompt.copy(), 1 + len(manifest.prompt.before_ids)
    blind[:, first : first + manifest.dims.image_tokens] = 0
    with pytest.raises(R2GenError, match="differ by"):
        run_trial(blind, decoder, table, manifest)


def test_a_bundle_of_an_earlier_release_proves_less(parts: tuple[Any, ...]) -> None:
    prompt, decoder, table, manifest = parts
    older = dataclasses.replace(manifest, reference=None)
    trial = run_trial(prompt, decoder, table, older)
    assert trial.difference is None
    assert "more is not known" in str(trial)
    with pytest.raises(R2GenError, match="is equal"):
        run_trial(prompt, Faulty(decoder, "writes nothing"), table, older)


def test_the_tolerance_is_that_of_the_coarsest_part(parts: tuple[Any, ...]) -> None:
    manifest = parts[3]
    assert tolerance_of(manifest) == PRECISIONS["fp32"].logits_tolerance
    assert tolerance_of(manifest, precision="fp16") == PRECISIONS["fp16"].logits_tolerance
    int8 = dataclasses.replace(manifest, precision={**manifest.precision, "vision": "int8"})
    assert tolerance_of(int8) == 0.1


CUDA_TAKEN = Candidate("CUDA", "all", True, Reason.fastest_usable)


class Machine:
    """A machine whose GPU is the CPU with a fault: what `open_sessions` makes of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, accelerated: str = "", plain: str = "") -> None:
        self.opened: list[str] = []
        faults = {False: plain, True: accelerated}
        opening = ladder.open_decoder

        def choose(device: str) -> ProviderChoice:
            return ProviderChoice([CUDA, CPU], CUDA, (CUDA_TAKEN,))

        def open_decoder(folder: Any, manifest: Any, choice: Any, **settings: Any) -> Any:
            on_gpu, fast = choice.providers[0] == CUDA, settings.pop("acceleration", PLAIN) != PLAIN
            self.opened.append("accelerated" if fast else "plain" if on_gpu else "cpu")
            host = dataclasses.replace(choice, providers=[CPU])
            decoder, taken = opening(folder, manifest, host, **{**settings, "device": "cpu"})
            return Faulty(decoder, faults[fast]) if on_gpu else decoder, dataclasses.replace(taken, name=choice.name)

        monkeypatch.setattr(ladder, "choose_providers", choose)
        monkeypatch.setattr(ladder, "require_gpu_kernels", lambda *_, **__: None)
        monkeypatch.setattr(ladder, "open_decoder", open_decoder)
        monkeypatch.setattr(ladder, "VisionSession", lambda path, **_: VisionSession(path, **HOST))

    def open(self, bundle: Path, device: str) -> ProviderChoice:
        return ladder.open_sessions(bundle, load_manifest(bundle), device=device, threads=1)[2]


def test_a_gpu_that_computes_right_is_taken(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    machine = Machine(monkeypatch)
    choice = machine.open(tiny_bundle, "auto")
    assert (choice.name, machine.opened) == (CUDA, ["accelerated"])
    assert choice.trial is not None
    assert choice.steps[-1].startswith("CUDA: taken, trial pass within ")
    assert not choice.decodes_on_cpu


@pytest.mark.parametrize("fault", ["replays the first inputs", "writes NaN"])
def test_what_accelerates_is_dropped_where_it_computes_wrong(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, fault: str
) -> None:
    machine = Machine(monkeypatch, accelerated=fault)
    choice = machine.open(tiny_bundle, "cuda")
    assert (choice.name, machine.opened) == (CUDA, ["accelerated", "plain"])
    assert choice.steps[-2].startswith("CUDA graphs: not taken for the decoder, logits of the trial pass ")


def test_a_gpu_that_computes_wrong_is_an_error_or_a_step(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    machine = Machine(monkeypatch, accelerated="reads zeros", plain="reads zeros")
    choice = machine.open(tiny_bundle, "auto")
    assert (choice.name, machine.opened) == (CPU, ["accelerated", "plain", "cpu"])
    assert choice.decodes_on_cpu
    assert [(one.name, one.taken, one.reason) for one in choice.candidates[-2:]] == [
        ("CUDA", False, Reason.does_not_load),
        ("CPU", True, Reason.fastest_usable),
    ]
    assert CUDA_TAKEN not in choice.candidates
    with pytest.raises(R2GenError, match="does not compute what was exported") as caught:
        machine.open(tiny_bundle, "cuda")
    assert caught.value.code == "R2G-DEVICE-UNAVAILABLE"


def test_auto_does_not_load_on_a_gpu_what_has_no_kernel_there(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    """The tiny bundle is `ort` in float32; a machine whose CUDA starts is all that is imagined here."""
    chosen = ProviderChoice([CUDA, CPU], CUDA, (CUDA_TAKEN,))
    monkeypatch.setattr(ladder, "choose_providers", lambda device: chosen)
    engines = ladder.EngineCandidates(tiny_bundle, load_manifest(tiny_bundle), "auto")
    assert engines.choose("auto").providers == [CPU]
    assert engines.choose("auto").steps[-2:] == [
        "CUDA: not taken, attention of a decoder in dialect ort and fp32 has no kernel for the GPU "
        "(export it again with --precision fp16, or --dialect trt; or --device cpu)",
        "CPU: taken",
    ]
    with pytest.raises(R2GenError, match="no kernel for the GPU"):
        engines.choose("cuda")


def test_doctor_says_what_the_trial_pass_showed(
    monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path, tmp_path: Path
) -> None:
    Machine(monkeypatch)
    older = Path(shutil.copytree(tiny_bundle, tmp_path / "older"))
    seal(older, dataclasses.replace(load_manifest(older), reference=None))
    for bundle, status, part in ((tiny_bundle, "ok", "within"), (older, "info", "more is not known")):
        check = next(one for one in bundle_checks(Bundle(bundle), "auto") if one.name == "trial pass")
        assert check.status == status
        assert part in check.detail


@pytest.mark.parametrize("dialect", ["ort", "trt", "standard"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_has_no_kernel_is_refused_before_it_is_loaded(
    parts: tuple[Any, ...], dialect: str, precision: str
) -> None:
    manifest = dataclasses.replace(
        parts[3], dialect=dialect, precision={**parts[3].precision, "decoder": precision, "vision": "fp16"}
    )
    if dialect == "ort" and not PRECISIONS[precision].half:
        with pytest.raises(R2GenError) as caught:
            require_gpu_kernels(manifest, vision=True, decoder=True)
        assert f"--precision {with_half_activations(precision)}, or --dialect trt" in caught.value.fix
    else:
        require_gpu_kernels(manifest, vision=True, decoder=True)
    require_gpu_kernels(manifest, vision=True, decoder=False)
    int8 = dataclasses.replace(manifest, precision={**manifest.precision, "vision": "int8"})
    with pytest.raises(R2GenError, match="int8 vision"):
        require_gpu_kernels(int8, vision=True, decoder=False)


def test_the_memory_a_bundle_takes_of_a_gpu() -> None:
    manifest = load_manifest(demo_bundle())
    dims, preset = manifest.dims, manifest.presets[manifest.default_preset]
    needed = estimate(manifest)
    stored = sum((demo_bundle() / name).stat().st_size for name in ("vision.onnx", "decoder/model.onnx"))
    assert needed.weights == stored
    length = manifest.prompt.length(dims.image_tokens) + preset.max_new_tokens
    slots = -(-length // 64) * 64
    row = dims.num_layers * 2 * dims.num_kv_heads * slots * dims.head_dim * 4
    assert row <= needed.cache < 2 * row  # greedy: one row, in a power of two
    beams = dataclasses.replace(manifest, default_preset="paper")
    assert 4 * row <= estimate(beams).cache < (2 + 6 + 6) * row  # one row, three, and what moves them
    assert preset.num_beams == 1
    assert estimate(manifest, decoder=False).cache == 0
    assert "GiB (weights " in str(needed)


@pytest.mark.parametrize(
    ("device", "parsed"), [("cuda", ("cuda", 0)), ("cuda:0", ("cuda", 0)), ("tensorrt:3", ("tensorrt", 3))]
)
def test_devices_are_parsed(device: str, parsed: tuple[str, int]) -> None:
    assert parse_device(device) == parsed


@pytest.mark.parametrize("device", ["cuda:", "cuda:-1", "cuda:x", "cuda:1:2", "cpu:0", "auto:1", ":1", "", "cuda:²"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(R2GenError, match="is unknown") as caught:
        parse_device(device)
    assert caught.value.code == "R2G-CONFIG-VALUE"
