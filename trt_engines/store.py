"""`BUNDLE/engines/`: one folder per target, one per part within it, and the timing cache builds of a target share."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from r2gen_export.bundle import DECODER, ENGINES, VISION, Manifest, safe_path
from r2gen_export.candidates import PARTS, GraphPart
from r2gen_export.errors import R2GenError
from r2gen_export.system.files import atomic_file, write_error
from r2gen_export.system.locks import file_lock
from trt_engines.backends import load_backend
from trt_engines.identity import PLAN, EngineIdentity, EngineMachine, compare, this_machine

TIMING_CACHE: Final = "timing.cache"
TIMING_KEY: Final = "timing.json"

SOURCES: Final[dict[GraphPart, str]] = {"vision": VISION, "decoder": DECODER}
"""Parts engines are built of, and their graphs in the bundle."""


@dataclass(frozen=True)
class Engine:
    """An engine of a bundle: its target's name, its part, its folder."""

    target: str
    part: GraphPart
    folder: Path


def source_sha256(manifest: Manifest, part: GraphPart) -> str:
    """SHA-256 over the hashes of the files a part's graph is made of, weights included."""
    source = SOURCES[part]
    names = sorted(name for name in manifest.files if name == source or name.startswith(f"{source}."))
    return hashlib.sha256("".join(f"{name} {manifest.files[name].sha256}\n" for name in names).encode()).hexdigest()


def target_name(backend: str, version: str, platform: str, capabilities: Sequence[str], precision: str) -> str:
    """Name of a target's folder, all that parts of one call share: `tensorrt-rtx-1.7.1-linux-x86_64-sm89-fp16`."""
    compiled = "_".join(f"sm{one.replace('.', '')}" for one in capabilities)
    return f"{backend}-{version}-{platform}-{compiled}-{precision}"


def engine_folder(bundle: Path, target: str, part: GraphPart) -> Path:
    """Where a part's engine lies.

    Raises:
        R2GenError: `R2G-BUNDLE-PATH` for a target that is no plain name, or a link in its place.
    """
    return safe_path(bundle, f"{ENGINES}/{target}/{part}")


def list_engines(bundle: Path) -> list[Engine]:
    """Every engine of a bundle, whole or not, by target and part."""
    folder = bundle / ENGINES
    if not folder.is_dir():
        return []
    targets = sorted(path.name for path in folder.iterdir() if _own_folder(path) and not path.name.startswith("."))
    return [
        Engine(target, part, folder / target / part)
        for target in targets
        for part in PARTS
        if _own_folder(folder / target / part)
    ]


def _own_folder(path: Path) -> bool:
    """A link could lead out of the bundle."""
    return path.is_dir() and not path.is_symlink()


def mismatches(identity: EngineIdentity, manifest: Manifest) -> list[str]:
    """Why an engine does not fit this machine and its bundle; the reason alone when its backend is not usable here."""
    try:
        machine = this_machine(load_backend(identity.backend))
    except R2GenError as error:
        return [error.message]
    return compare(identity, machine, source_sha256=source_sha256(manifest, identity.part))


def remove_engines(bundle: Path, target: str, part: GraphPart | None = None) -> int:
    """Remove a target, or one part of it.

    Returns:
        Bytes of the plans removed.

    Raises:
        R2GenError: `R2G-ENGINE-MISSING`, `R2G-BUNDLE-PATH`, `R2G-OUTPUT-WRITE`.
    """
    found = [one for one in list_engines(bundle) if one.target == target and part in (None, one.part)]
    if not found:
        known = ", ".join(dict.fromkeys(one.target for one in list_engines(bundle))) or "none"
        message = f"no engine {'/'.join(filter(None, (target, part)))} in the bundle; there: {known}"
        raise R2GenError("R2G-ENGINE-MISSING", message, "r2gen engines list BUNDLE")
    size = sum(plan.stat().st_size for one in found if (plan := one.folder / PLAN).is_file())
    with locked(bundle, target):
        try:
            for one in found:
                shutil.rmtree(engine_folder(bundle, target, one.part))
            folder = bundle / ENGINES / target
            if not any((folder / one).exists() for one in PARTS):
                shutil.rmtree(folder)
        except OSError as error:
            raise write_error(bundle / ENGINES, error) from error
    return size


@contextmanager
def locked(bundle: Path, target: str, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold a target against other processes that build or remove it.

    Args:
        bundle: the folder.
        target: the target's name.
        waiting: called once when another process holds it and this one begins to wait.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE` when the lock file cannot be made.
    """
    path = safe_path(bundle, f"{ENGINES}/.{target}.lock")
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    with file_lock(path, waiting=waiting):
        yield


@dataclass(frozen=True)
class TimingKey:
    """`timing.json`: what wrote a timing cache, and its SHA-256. Another backend, release or GPU cannot use it."""

    backend: str
    version: str
    gpu: str | None
    sha256: str


def read_timing_cache(folder: Path, machine: EngineMachine) -> tuple[bytes, str]:
    """A target's timing cache, for a build on this machine.

    A cache that is torn, foreign or without its key is moved aside, to `timing.cache.aside`, and the build starts with
    an empty one: it is only slower.

    Args:
        folder: the target's.
        machine: this one.

    Returns:
        The cache, empty when there is none, and why one was moved aside, empty when none was.
    """
    path = folder / TIMING_CACHE
    if not path.is_file():
        return b"", ""
    content = path.read_bytes()
    found = TimingKey(machine.backend, machine.version, machine.gpu, hashlib.sha256(content).hexdigest())
    try:
        key = TimingKey(**json.loads((folder / TIMING_KEY).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return b"", set_timing_cache_aside(folder, "nothing says where it comes from")
    if key.sha256 != found.sha256:
        return b"", set_timing_cache_aside(folder, "it is not as it was written")
    if key != found:
        origin = " ".join(filter(None, (key.backend, key.version, key.gpu)))
        return b"", set_timing_cache_aside(folder, f"it comes from {origin}")
    return content, ""


def set_timing_cache_aside(folder: Path, reason: str) -> str:
    """Move a timing cache out of the way. Returns what to tell the user."""
    (folder / TIMING_CACHE).replace(folder / f"{TIMING_CACHE}.aside")
    (folder / TIMING_KEY).unlink(missing_ok=True)
    return f"the timing cache was set aside: {reason}"


def write_timing_cache(folder: Path, content: bytes, machine: EngineMachine) -> str:
    """Keep a timing cache for the target's next build. Returns its SHA-256.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE`.
    """
    digest = hashlib.sha256(content).hexdigest()
    key = TimingKey(machine.backend, machine.version, machine.gpu, digest)
    with atomic_file(folder / TIMING_CACHE) as scratch:
        scratch.write_bytes(content)
    with atomic_file(folder / TIMING_KEY) as scratch:
        scratch.write_text(json.dumps(key.__dict__) + "\n", encoding="utf-8")
    return digest
