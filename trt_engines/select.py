"""Which engines of a bundle this machine can run, and opening them: the first candidates of the runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from r2gen_export.bundle import Dims, Manifest
from r2gen_export.candidates import ENGINE, PARTS, Candidate, Reason
from r2gen_export.errors import R2GenError
from r2gen_export.system.cache_folder import cache_folder
from trt_engines.backends import Backend, load_backend
from trt_engines.cuda import Cuda
from trt_engines.identity import EngineIdentity, compare, read_identity, this_machine, verify_plan
from trt_engines.sessions import EngineDecoder, EngineVision
from trt_engines.store import Engine, list_engines, source_sha256


@dataclass(frozen=True)
class Fitting:
    """An engine that fits bundle and machine."""

    engine: Engine
    identity: EngineIdentity
    backend: Backend

    @property
    def product(self) -> str:
        """What runs it, with its version, and in which precision: that may be another than the bundle's."""
        return f"{self.backend.product} {self.backend.version}, {self.identity.precision}"

    @property
    def jit_cache(self) -> Path:
        """Where what the backend compiles for this plan is kept."""
        return cache_folder() / self.backend.name / f"{self.identity.plan_sha256[:16]}.cache"


def find_engines(
    bundle: Path, manifest: Manifest, device_id: int = 0
) -> tuple[dict[str, Fitting], dict[str, list[Candidate]]]:
    """For each part the newest engine that fits this machine, or why none does: a record each. Loads no plan.

    Args:
        bundle: the folder.
        manifest: its manifest, verified.
        device_id: the GPU they are to run on, as CUDA counts them.
    """
    fitting: dict[str, Fitting] = {}
    refused: dict[str, list[Candidate]] = {}
    for part in PARTS:
        examined = [_examine(manifest, engine, device_id) for engine in list_engines(bundle) if engine.part == part]
        fits = [result for result in examined if isinstance(result, Fitting)]
        if fits:
            fitting[part] = max(fits, key=lambda fit: fit.identity.created)
            continue
        none_built = Candidate(
            ENGINE, part, False, Reason.not_built, "none built", f"r2gen build BUNDLE --parts {part}"
        )
        refused[part] = [result for result in examined if isinstance(result, Candidate)] or [none_built]
    return fitting, refused


def _examine(manifest: Manifest, engine: Engine, device_id: int) -> Fitting | Candidate:
    """An engine that fits; else why it does not, with the command that builds one that does."""
    try:
        identity = read_identity(engine.folder)
        backend = load_backend(identity.backend)
    except R2GenError as error:
        reason = Reason.not_installed if error.code == "R2G-ENGINE-BACKEND" else Reason.unreadable
        return Candidate(ENGINE, engine.part, False, reason, error.message, error.fix)
    machine = this_machine(backend, device_id)
    if differences := compare(identity, machine, source_sha256=source_sha256(manifest, engine.part)):
        command = identity.build_command(machine=machine)
        return Candidate(ENGINE, engine.part, False, Reason.other_target, "; ".join(differences), command)
    return Fitting(engine, identity, backend)


def open_engine_vision(fitting: Fitting, dims: Dims, cuda: Cuda) -> EngineVision:
    """Load a vision engine.

    Raises:
        R2GenError: `R2G-ENGINE-HASH`, and what `EngineVision` raises.
    """
    with _explained(fitting, cuda.device_id):
        return EngineVision(fitting.engine.folder, dims, fitting.backend, cuda, jit_cache=fitting.jit_cache)


def open_engine_decoder(fitting: Fitting, dims: Dims, cuda: Cuda) -> EngineDecoder:
    """Load a decoder engine.

    Raises:
        R2GenError: `R2G-ENGINE-HASH`, and what `EngineDecoder` raises.
    """
    with _explained(fitting, cuda.device_id):
        return EngineDecoder(fitting.engine.folder, dims, fitting.backend, cuda, jit_cache=fitting.jit_cache)


@contextmanager
def _explained(fitting: Fitting, device_id: int) -> Iterator[None]:
    """Check a plan before it is loaded; when it is refused all the same, say what it was built for, and where."""
    identity, folder = fitting.identity, fitting.engine.folder
    verify_plan(folder, identity)
    try:
        yield
    except R2GenError as error:
        if error.code != "R2G-ENGINE-MISMATCH":
            raise
        here = this_machine(fitting.backend, device_id)
        built = f"{identity.version}, {' or '.join(identity.compute_capabilities)}, driver {identity.driver or 'none'}"
        found = f"{here.version}, {here.compute_capability}, driver {here.driver}"
        command = identity.build_command(machine=here)
        message = f"{error.message} (built for {built}; found {found})"
        raise R2GenError(error.code, message, f"build it again: {command}") from error
