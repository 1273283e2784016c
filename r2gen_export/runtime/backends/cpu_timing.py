"""Which engine decodes on the CPU: ONNX Runtime, or OpenVINO where it is installed and was measured to be faster.

Neither wins everywhere: OpenVINO reads prompts in about half the time, ONNX Runtime takes less for a single position on
some machines. So the two race once for each bundle and machine, and the result is kept in the user's cache folder.
"""

from __future__ import annotations

import gc
import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import numpy as np

from r2gen_export import bundle as layout
from r2gen_export.bundle import Manifest, bundle_id
from r2gen_export.errors import R2GenError
from r2gen_export.precision import PRECISIONS
from r2gen_export.runtime.backends.openvino_decoder import OpenVinoDecoder, why_not_openvino
from r2gen_export.runtime.backends.ort_decoder import DecoderSession
from r2gen_export.runtime.backends.ort_providers import CPU, OPENVINO, PLAIN, Acceleration, ProviderChoice
from r2gen_export.system.cache_folder import cache_folder
from r2gen_export.system.cores import thread_count
from r2gen_export.system.files import atomic_file
from r2gen_export.system.versions import installed_version

LARGE: Final = 2048 * 16
"""Width times layers from which an LLM's speed is worth a race, or huge pages for its weights."""

REPORT: Final = 100
"""Tokens of the report that the race is about."""

PASSES: Final = 12
"""Single positions each engine decodes."""

MARGIN: Final = 0.9
"""OpenVINO is taken below this part of ONNX Runtime's time: shared machines drift by less."""

AnyDecoder = DecoderSession | OpenVinoDecoder


@dataclass(frozen=True)
class Race:
    """Milliseconds of each engine for a report: its prompt, and `REPORT` passes of one position."""

    onnxruntime: float
    openvino: float

    @property
    def ratio(self) -> float:
        """OpenVINO's time divided by ONNX Runtime's."""
        return self.openvino / self.onnxruntime


def is_large(manifest: Manifest) -> bool:
    """Whether the LLM is of a size where memory bandwidth counts."""
    return manifest.dims.d_llm * manifest.dims.num_layers >= LARGE


def open_decoder(
    folder: Path,
    manifest: Manifest,
    choice: ProviderChoice,
    *,
    device: str,
    threads: int | None,
    acceleration: Acceleration = PLAIN,
) -> tuple[AnyDecoder, ProviderChoice]:
    """Load the decoder of a bundle.

    Args:
        folder: the bundle.
        manifest: its manifest.
        choice: what the graphs run on, from `choose_providers`.
        device: what was asked for; with `auto` on the CPU the faster engine is taken.
        threads: CPU threads, None: the cores this process may use.
        acceleration: of the CUDA provider.

    Returns:
        The decoder; and the choice with a step that says why OpenVINO was taken or not.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH`, `R2G-DEVICE-UNAVAILABLE`.
    """
    path = folder / layout.DECODER

    def onnxruntime() -> AnyDecoder:
        tuning = None
        if choice.builds_engines:
            from r2gen_export.runtime.backends.ort_tensorrt import decoder_tuning

            tuning = decoder_tuning(manifest)
        return DecoderSession(
            path,
            manifest.dims,
            providers=choice.providers,
            threads=threads,
            tuning=tuning,
            acceleration=acceleration,
            gpu=choice.gpu,
        )

    def openvino() -> AnyDecoder:
        return OpenVinoDecoder(path, manifest.dims, threads=threads)

    if device == "openvino":
        return openvino(), choice
    if device != "auto" or choice.providers[0] != CPU:
        return onnxruntime(), choice
    if reason := why_not_openvino() or _why_not_raced(manifest):
        return onnxruntime(), choice.with_step(f"OpenVINO: not taken, {reason}")
    record = _record_path(manifest, thread_count(threads))
    try:
        race = _recorded(record) or _keep(record, run_race(manifest, onnxruntime, openvino))
    except R2GenError as error:
        return onnxruntime(), choice.with_step(f"OpenVINO: not taken, {error.message}")
    measured = f"{race.ratio:.2f} of ONNX Runtime's time for a report of {REPORT} tokens, measured here"
    if race.ratio < MARGIN:
        return openvino(), choice.with_step(f"OpenVINO: taken for the decoder, {measured}", OPENVINO)
    return onnxruntime(), choice.with_step(f"OpenVINO: not taken, {measured}")


def run_race(manifest: Manifest, *engines: Callable[[], AnyDecoder]) -> Race:
    """Time a report of the default preset with one engine after the other: a 7B model may not fit twice."""
    prompt = manifest.prompt.length(manifest.dims.image_tokens)
    rows = manifest.presets[manifest.default_preset].num_beams
    embeds = np.random.default_rng(0).normal(0, 0.02, (1, prompt, manifest.dims.d_llm)).astype(np.float32)
    times = []
    for engine in engines:
        times.append(_time(engine(), embeds, rows))
        gc.collect()  # the engine's memory goes before the next one loads
    return Race(*times)


def _time(decoder: AnyDecoder, embeds: Any, rows: int) -> float:
    decoder.share_prefix(embeds[:, :1])
    _report_ms(decoder, embeds, rows)  # the first pass of a shape is not like the others
    return _report_ms(decoder, embeds, rows)


def _report_ms(decoder: AnyDecoder, embeds: Any, rows: int) -> float:
    started = perf_counter()
    state = decoder.prefill(embeds, PASSES)
    prefill = (perf_counter() - started) * 1000
    state.reorder(np.zeros(rows, np.int64))
    token = np.repeat(embeds[:, :1], rows, axis=0)
    times = []
    for _ in range(PASSES):
        started = perf_counter()
        state.decode(token)
        times.append((perf_counter() - started) * 1000)
    return float(prefill + REPORT * np.median(times))


def _why_not_raced(manifest: Manifest) -> str:
    if manifest.dialect != "ort" or PRECISIONS[manifest.precision["decoder"]].half:
        return f"it cannot run a decoder of dialect {manifest.dialect} in {manifest.precision['decoder']}"
    return "" if is_large(manifest) else "the LLM is too small to matter"


def _record_path(manifest: Manifest, threads: int) -> Path:
    """One file for what the result depends on: bundle, processor, threads, versions."""
    versions = [installed_version(name) or "" for name in ("openvino", "onnxruntime-gpu", "onnxruntime")]
    facts = [bundle_id(manifest), _processor(), str(threads), *versions]
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    return cache_folder() / "engines" / f"{name}.json"


def _recorded(path: Path) -> Race | None:
    try:
        race = Race(**json.loads(path.read_text(encoding="utf-8")))
        return race if race.onnxruntime > 0 and race.openvino > 0 else None
    except (OSError, ValueError, TypeError):
        return None


def _keep(path: Path, race: Race) -> Race:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as scratch:
            scratch.write_text(json.dumps(race.__dict__), encoding="utf-8")
    except (OSError, R2GenError):
        pass  # a cache folder that cannot be written costs the next start a race
    return race


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
    except OSError:
        return platform.processor()
