"""`identity.json` beside every plan: what it was built from and for, compared with the machine before it is loaded."""

from __future__ import annotations

import dataclasses
import json
import platform
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from r2gen_export.bundle import sha256_file
from r2gen_export.bundle.manifest_json import MalformedError, decode_fields
from r2gen_export.candidates import GraphPart
from r2gen_export.errors import R2GenError, cause_of
from r2gen_export.system.gpu import gpu
from r2gen_export.system.nvml import driver_version
from trt_engines.backends import PRODUCTS, Backend

PLAN: Final = "engine.plan"
IDENTITY: Final = "identity.json"
LAYERS: Final = "layers.json"
REBUILD: Final = "r2gen build BUNDLE"
FORMAT: Final = "r2gen-engine"
FORMAT_VERSION: Final = 1


@dataclass(frozen=True)
class Shapes:
    """One dynamic input in one optimisation profile: smallest, best and largest shape."""

    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """An optimisation profile; its place in `EngineIdentity.profiles` is its index in the engine.

    `name`: `encode` for vision; `prefill` and `decode` for the decoder. `inputs`: the dynamic inputs by name.
    """

    name: str
    inputs: dict[str, Shapes]


@dataclass(frozen=True)
class EngineIdentity:
    """`identity.json`.

    `compute_capabilities`: what the plan was compiled for (`8.9`). `gpu` and `driver`: of the machine that built it,
    None without one; a TensorRT plan belongs to that GPU. `precision`: of the graph (`fp32`, `fp16`, `int4`).
    `bundle_id` and `source_sha256`: the bundle and its ONNX file; `onnx_sha256`: the graph derived from it that was
    parsed, weights excluded. `asked`: the precision of the call (a vision encoder asked for in int4 is fp16).
    `max_length`: positions of the decoder's cache, None for vision. `flags`: names of the builder flags set.
    `options`: the rest of the recipe, as `r2gen build` takes it. `build_s` (seconds), `peak_rss_bytes`,
    `parameter_bytes`, `plan_bytes`: what the build cost, beside the size of the weights in the graph.
    `layer_source`: where `layers.json` comes from, the engine's inspector or, without a GPU, the parsed network.
    """

    backend: str
    version: str
    platform: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    driver: str | None
    part: GraphPart
    precision: str
    asked: str
    dialect: str
    bundle_id: str
    source_sha256: str
    onnx_sha256: str
    max_length: int | None
    profiles: tuple[Profile, ...]
    flags: tuple[str, ...]
    plan_sha256: str
    plan_bytes: int
    timing_cache_sha256: str | None
    options: tuple[str, ...]
    created: str
    build_s: float
    peak_rss_bytes: int
    parameter_bytes: int
    layer_source: str
    tools: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        """Write `identity.json` into an engine's folder.

        Raises:
            OSError: when the file cannot be written.
        """
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"
        (folder / IDENTITY).write_text(text, encoding="utf-8")

    def build_command(self, bundle: Path = Path("BUNDLE"), machine: EngineMachine | None = None) -> str:
        """What builds this engine again from its bundle, for the same target or for a machine's backend and GPU."""
        backend, capabilities = self.backend, self.compute_capabilities
        if machine is not None:
            backend = machine.backend
            capabilities = (machine.compute_capability,) if machine.compute_capability else capabilities
        words = ["r2gen", "build", str(bundle), "--backend", backend, "--parts", self.part, "--precision", self.asked]
        for one in capabilities:
            words += ["--compute-capability", one]
        return shlex.join([*words, *self.options])


@dataclass(frozen=True)
class EngineMachine:
    """Where a plan is to run. `compute_capability`, `gpu` and `driver` are None without a GPU."""

    backend: str
    version: str
    platform: str
    compute_capability: str | None
    gpu: str | None
    driver: str | None


def platform_name() -> str:
    """Operating system and processor an engine is tied to: `linux-x86_64`, `windows-x86_64`."""
    system = {"win32": "windows"}.get(sys.platform, sys.platform)
    return f"{system}-{platform.machine().lower().replace('amd64', 'x86_64')}"


def this_machine(backend: Backend, device_id: int = 0) -> EngineMachine:
    """The machine this process runs on, with the backend it would load plans with, and the GPU of that number."""
    found = gpu(device_id)
    return EngineMachine(
        backend.name,
        backend.version,
        platform_name(),
        found.compute_capability if found else None,
        found.name if found else None,
        driver_version() if found else None,
    )


def read_identity(folder: Path) -> EngineIdentity:
    """The identity of an engine's folder, every field checked.

    Raises:
        R2GenError: `R2G-ENGINE-MISSING` without plan or identity; `R2G-ENGINE-IDENTITY` when it is not readable.
    """
    path, name = folder / IDENTITY, f"{_in_bundle(folder)}/{IDENTITY}"
    if not path.is_file() or not (folder / PLAN).is_file():
        raise R2GenError("R2G-ENGINE-MISSING", f"{_in_bundle(folder)} holds no {PLAN} with its {IDENTITY}", REBUILD)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict) or (fields.get("format"), fields.get("format_version")) != (
            FORMAT,
            FORMAT_VERSION,
        ):
            raise ValueError(f"it is not {FORMAT!r} version {FORMAT_VERSION}")
        identity: EngineIdentity = decode_fields(EngineIdentity, fields, "")
    except OSError as error:
        message = f"{name} cannot be read: {cause_of(error)}"
        raise R2GenError("R2G-ENGINE-IDENTITY", message, REBUILD) from error
    except (ValueError, RecursionError) as error:
        raise R2GenError("R2G-ENGINE-IDENTITY", f"{name} cannot be read: {error}", REBUILD) from error
    except MalformedError as error:
        raise R2GenError("R2G-ENGINE-IDENTITY", f"{name}: {error.problem}", REBUILD) from error
    return identity


def _in_bundle(folder: Path) -> str:
    """An engine's folder, `BUNDLE/engines/TARGET/PART`, relative to its bundle: messages are kept in reports."""
    return "/".join(folder.parts[-3:])


def verify_plan(folder: Path, identity: EngineIdentity) -> None:
    """Check the plan against its identity: a plan is code that runs on the GPU.

    Raises:
        R2GenError: `R2G-ENGINE-HASH`.
    """
    plan, name = folder / PLAN, f"{_in_bundle(folder)}/{PLAN}"
    size = plan.stat().st_size
    if size != identity.plan_bytes:
        message = f"{name} has {size} bytes, its identity says {identity.plan_bytes}"
    else:
        digest = sha256_file(plan)
        if digest == identity.plan_sha256:
            return
        message = f"{name} has SHA-256 {digest[:12]}..., its identity says {identity.plan_sha256[:12]}..."
    raise R2GenError("R2G-ENGINE-HASH", message, f"do not load it; build it again: {identity.build_command()}")


def compare(identity: EngineIdentity, machine: EngineMachine, *, source_sha256: str | None = None) -> list[str]:
    """Why a plan does not fit a machine.

    Plans of both products are tied to backend, version and platform (NVIDIA's support matrix: no compatibility unless
    asked for at build time); TensorRT's to the GPU too, TensorRT-RTX's to the compute capabilities compiled for. A
    newer or older driver alone is no reason: the runtime checks it when it loads the plan.

    Args:
        identity: the plan's.
        machine: where it is to run.
        source_sha256: of the bundle's ONNX file for this part, None: do not compare.

    Returns:
        "built for X, found Y", one for each difference; empty when the plan fits.
    """
    pairs = [
        (PRODUCTS.get(identity.backend, identity.backend), PRODUCTS.get(machine.backend, machine.backend)),
        (f"version {identity.version}", f"version {machine.version}"),
        (identity.platform, machine.platform),
    ]
    capable = " or ".join(identity.compute_capabilities)
    if machine.compute_capability is None:
        pairs.append((f"a GPU of compute capability {capable}", "no GPU"))
    elif machine.compute_capability not in identity.compute_capabilities:
        pairs.append((f"compute capability {capable}", f"{machine.compute_capability} ({machine.gpu})"))
    elif identity.backend == "tensorrt" and identity.gpu is not None:
        pairs.append((identity.gpu, machine.gpu or "another GPU"))
    if source_sha256 is not None:
        pairs.append((f"ONNX {identity.source_sha256[:12]}", f"ONNX {source_sha256[:12]}"))
    return [f"built for {built}, found {found}" for built, found in pairs if built != found]
