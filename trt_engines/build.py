"""`r2gen build`: a bundle's parts to engines, each whole in its folder or not there.

Within one target's lock: prepare the graph, check its nodes, write it, let the backend parse and build it, and keep
beside the plan what it is, what it cost and what it is made of.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from r2gen_export.bundle import Manifest, bundle_id, open_bundle, sha256_file
from r2gen_export.candidates import PARTS, GraphPart
from r2gen_export.errors import R2GenError
from r2gen_export.system.files import atomic_dir, write_error
from r2gen_export.system.memory import peak_rss, reset_peak_rss
from r2gen_export.system.versions import installed_version
from trt_engines import prepare as networks
from trt_engines import store
from trt_engines.backends import Backend, load_backend
from trt_engines.builder import Order, Toolchain
from trt_engines.graph import graph_sha256
from trt_engines.graph_checks import find_problems, require_clean
from trt_engines.identity import (
    LAYERS,
    PLAN,
    EngineIdentity,
    EngineMachine,
    read_identity,
    this_machine,
    verify_plan,
)
from trt_engines.prepare import Limits
from trt_engines.progress import Show
from trt_engines.worker import BuildOutcome, build_apart

SCRATCH: Final = ".graph-"
"""Beginning of the names of folders that hold the graph while it is built, inside the target's."""


@dataclass(frozen=True)
class BuildSettings:
    """What to build; `precision` None: as the bundle's decoder. `capabilities` empty: this machine's GPU."""

    backend: str = "auto"
    parts: tuple[GraphPart, ...] = PARTS
    precision: str | None = None
    capabilities: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    weight_streaming: bool = False
    rebuild: bool = False


@dataclass(frozen=True)
class Built:
    """An engine: its folder and identity. `reused`: it was there already. `notes`: what the user should know."""

    folder: Path
    identity: EngineIdentity
    reused: bool
    notes: tuple[str, ...]


def build_engines(
    bundle: Path,
    settings: BuildSettings,
    *,
    show: Callable[[GraphPart], Show] = lambda part: lambda fraction, what: None,
    say: Callable[[str], None] = lambda line: None,
) -> Iterator[Built]:
    """Build a bundle's engines, one part after the other.

    Args:
        bundle: the folder; its hashes are checked first.
        settings: what to build.
        show: for a part, what is told how far its build is.
        say: told when another process is waited for.

    Yields:
        Each engine when it is in its place.

    Raises:
        R2GenError: `R2G-ENGINE-BACKEND`, `R2G-ENGINE-GRAPH`, `R2G-ENGINE-NODE`, `R2G-ENGINE-PARSE`,
            `R2G-ENGINE-BUILD`, `R2G-CONFIG-VALUE`, `R2G-OUTPUT-WRITE`, and what `open_bundle` raises.
        KeyboardInterrupt: Ctrl-C; engines built before stay, of the one at hand nothing does.
    """
    manifest = open_bundle(bundle)
    precision = settings.precision or networks.default_precision(manifest)
    if precision not in networks.PRECISIONS:
        message = f"engines are not built in precision {precision!r}"
        raise R2GenError("R2G-CONFIG-VALUE", message, f"--precision {'|'.join(networks.PRECISIONS)}")
    networks.check_source(manifest, settings.parts)
    tools = Toolchain(load_backend(settings.backend))
    machine = this_machine(tools.backend)
    settings = replace(settings, precision=precision, capabilities=_capabilities(tools, machine, settings))
    target = store.target_name(
        tools.backend.name, tools.backend.version, machine.platform, settings.capabilities, precision
    )
    for part in dict.fromkeys(settings.parts):
        folder = store.engine_folder(bundle, target, part)
        with store.locked(bundle, target, waiting=lambda: say(f"waiting for another build of {target}")):
            built = _build(_Job(bundle, manifest, part, settings, tools, machine, folder), show(part))
        yield built


def _capabilities(tools: Toolchain, machine: EngineMachine, settings: BuildSettings) -> tuple[str, ...]:
    """What to build for: what was asked for, else the GPU of this machine.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    asked, own = tuple(dict.fromkeys(settings.capabilities)), machine.compute_capability
    if not tools.backend.builds_without_gpu:
        if own is None or asked not in ((), (own,)):
            found = f"this machine's GPU has {own}" if own else "this machine has no GPU"
            message = f"{tools.backend.product} builds for the GPU it runs on; {found}"
            raise R2GenError("R2G-CONFIG-VALUE", message, "leave --compute-capability out, or --backend tensorrt-rtx")
        return (own,)
    if not asked and own is None:
        message = "no GPU here whose compute capability could be taken"
        fix = "--compute-capability 8.6 (Ampere), 8.9 (Ada) or 12.0 (Blackwell), that of the workstation's GPU"
        raise R2GenError("R2G-CONFIG-VALUE", message, fix)
    chosen = asked or (str(own),)
    for one in chosen:
        tools.capability(one)
    return chosen


@dataclass(frozen=True)
class _Job:
    bundle: Path
    manifest: Manifest
    part: GraphPart
    settings: BuildSettings
    tools: Toolchain
    machine: EngineMachine
    folder: Path

    @property
    def backend(self) -> Backend:
        return self.tools.backend

    @property
    def precision(self) -> str:
        assert self.settings.precision is not None
        return networks.part_precision(self.part, self.settings.precision)

    @property
    def options(self) -> tuple[str, ...]:
        """The rest of the recipe, as `r2gen build` takes it."""
        limits = self.settings.limits
        if self.part == "vision":
            words = ["--max-views", str(limits.max_views)]
        else:
            words = ["--max-batch", str(limits.max_batch), "--max-length", str(limits.length(self.manifest))]
        return (*words, "--weight-streaming") if self.settings.weight_streaming else tuple(words)


def _build(job: _Job, show: Show) -> Built:
    if not job.settings.rebuild and (ready := _ready(job)) is not None:
        return ready
    target = job.folder.parent
    try:
        target.mkdir(parents=True, exist_ok=True)
        for leftover in (f"{SCRATCH}*", f".{job.part}.*.part", f".{job.part}.*.old"):
            for path in target.glob(leftover):
                shutil.rmtree(path, ignore_errors=True)  # of a build that was killed; this one holds the lock
        with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=target) as scratch:
            return _build_in(job, Path(scratch), show)
    except OSError as error:
        raise write_error(job.folder, error) from error


def _build_in(job: _Job, scratch: Path, show: Show) -> Built:
    show(0.0, "rewriting the graph")
    reset_peak_rss()
    begun = time.perf_counter()
    graph = networks.prepare(job.bundle, job.manifest, job.part, job.precision, job.settings.limits)
    product = f"{job.backend.product} {job.backend.version}"
    require_clean(find_problems(graph, job.tools.supports), product, f"the {job.part}'s graph")
    model = graph.write(scratch)  # where the worker finds it
    profiles = networks.profiles(graph, job.manifest, job.part, job.settings.limits)
    capabilities = job.settings.capabilities if job.backend.builds_without_gpu else ()
    cache, note = store.read_timing_cache(job.folder.parent, job.machine)
    (scratch / store.TIMING_CACHE).write_bytes(cache)
    order = Order(capabilities, profiles, job.settings.weight_streaming)
    outcome = build_apart(job.backend, order, scratch, show)
    cost = _Cost(time.perf_counter() - begun, max(peak_rss(), outcome.peak_rss_bytes), graph.parameter_bytes())
    timings = (scratch / store.TIMING_CACHE).read_bytes()
    kept = store.write_timing_cache(job.folder.parent, timings, job.machine) if timings else None
    with atomic_dir(job.folder, overwrite=True, subject=job.folder.name) as folder:
        for name in (PLAN, LAYERS):
            (scratch / name).rename(folder / name)
        identity = _identity(job, order, outcome, cost, onnx_sha256=graph_sha256(model), plan=folder / PLAN, cache=kept)
        identity.write(folder)
    return Built(job.folder, identity, False, (note,) if note else ())


@dataclass(frozen=True)
class _Cost:
    build_s: float
    peak_rss_bytes: int
    parameter_bytes: int


def _identity(
    job: _Job, order: Order, outcome: BuildOutcome, cost: _Cost, *, onnx_sha256: str, plan: Path, cache: str | None
) -> EngineIdentity:
    return EngineIdentity(
        backend=job.backend.name,
        version=job.backend.version,
        platform=job.machine.platform,
        compute_capabilities=job.settings.capabilities,
        gpu=job.machine.gpu,
        driver=job.machine.driver,
        part=job.part,
        precision=job.precision,
        asked=str(job.settings.precision),
        dialect=job.manifest.dialect,
        bundle_id=bundle_id(job.manifest),
        source_sha256=store.source_sha256(job.manifest, job.part),
        onnx_sha256=onnx_sha256,
        max_length=job.settings.limits.length(job.manifest) if job.part == "decoder" else None,
        profiles=order.profiles,
        flags=outcome.flags,
        plan_sha256=sha256_file(plan),
        plan_bytes=plan.stat().st_size,
        timing_cache_sha256=cache,
        options=job.options,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        build_s=round(cost.build_s, 3),
        peak_rss_bytes=cost.peak_rss_bytes,
        parameter_bytes=cost.parameter_bytes,
        layer_source=outcome.layer_source,
        tools={name: installed_version(name) or "unknown" for name in ("onnx", "r2gen")},
    )


def _ready(job: _Job) -> Built | None:
    """The engine that is there, when it is whole and is what would be built."""
    try:
        identity = read_identity(job.folder)
        verify_plan(job.folder, identity)
    except R2GenError:
        return None
    same = (
        identity.source_sha256 == store.source_sha256(job.manifest, job.part)
        and identity.options == job.options
        and (job.backend.builds_without_gpu or identity.gpu == job.machine.gpu)
    )
    return Built(job.folder, identity, True, ()) if same else None
