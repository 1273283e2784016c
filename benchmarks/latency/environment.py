"""Where and with what a run was made. Nothing in it names the machine, its user, or a file of a patient."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.latency.trackers import Nvml
from benchmarks.machine_rates import last_level_cache
from r2gen_export.bundle import Manifest, bundle_id
from r2gen_export.system.cores import available_cores, cpu_facts, processor_name
from r2gen_export.system.memory import total_memory
from r2gen_export.system.versions import VERSION, installed_version

PACKAGES: Final = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tokenizers", "pillow", "torch", "transformers", "tensorrt",
)  # fmt: skip

HARDWARE: Final = ("cpu", "cores", "memory_gb", "cache_mb", "kernel", "machine", "gpu_name", "gpu_driver")
"""What tells one host from another: facts of the hardware and its system, never a name."""

ABSOLUTE: Final = re.compile(r"(?<!\w)(?:[A-Za-z]:)?[/\\][^\s'\"(),;]+")
"""A path from the root on, in free text."""


def environment() -> dict[str, Any]:
    """CPU, cores, memory, GPU, system, versions; `host` is a hash over the facts in `HARDWARE`."""
    gpu, facts, memory = Nvml().facts(), cpu_facts(), total_memory()
    found: dict[str, Any] = {
        "cpu": processor_name(facts),
        "cores": available_cores(),
        "memory_gb": None if memory is None else round(memory / 1e9, 1),
        "cache_mb": round(last_level_cache() / 1e6, 1),
        "clock_mhz": _clock_mhz(facts),
        "governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "huge_pages": _huge_pages(),
        "virtual_machine": "hypervisor" in facts.get("flags", "").split() if facts else None,
        "machine": platform.machine(),
        "kernel": f"{platform.system()} {platform.release()}",
        "gpu": gpu,
        "gpu_name": gpu["name"] if gpu else None,
        "gpu_driver": gpu["driver"] if gpu else None,
        "python": platform.python_version(),
        "r2gen": VERSION,
        "packages": {name: version for name in PACKAGES if (version := installed_version(name))},
        "git": git_commit(),
    }
    hardware = json.dumps([found[name] for name in HARDWARE])
    found["host"] = hashlib.sha256(hardware.encode()).hexdigest()[:12]
    return found


def bundle_facts(manifest: Manifest) -> dict[str, Any]:
    """What was measured, with the hash of every file."""
    files = {
        name: {"size": entry.size, "sha256": entry.sha256}
        for name, entry in sorted(manifest.files.items())
        if not name.startswith("drafts/")
    }
    return {
        "id": bundle_id(manifest),
        "model_id": manifest.model_id,
        "synthetic": manifest.synthetic,
        "dialect": manifest.dialect,
        "precision": manifest.precision,
        "semantics": manifest.semantics,
        "prompt_tokens": manifest.prompt.length(manifest.dims.image_tokens),
        "dims": vars(manifest.dims),
        "parity": [
            {"name": one.name, "passed": one.passed, "gate": one.gate, "detail": one.detail} for one in manifest.parity
        ],
        "files": files,
    }


def command_line(arguments: Sequence[str]) -> str:
    """A command line whose paths are cut to their last part; file names of images and lists are left out."""
    shown = []
    hides = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name.startswith("--"):
            shown.append(f"{name}={'...' if name == '--images' else _short(value)}")
        else:
            shown.append("..." if hides else _short(argument))
        hides = argument == "--images"
    return "r2gen " + " ".join(shlex.quote(one) if one != "..." else one for one in shown)


def without_folders(text: str, bundle: Path) -> str:
    """Free text whose absolute paths, and the bundle's in any case, are cut to their last part."""
    # First what is known: these may have blanks in them, where the pattern would end.
    for folder in (bundle.absolute(), bundle):
        if folder.name and folder.name != str(folder):
            text = text.replace(str(folder), folder.name)
    if Path.home().name:
        text = text.replace(str(Path.home()), Path.home().anchor)
    return ABSOLUTE.sub(lambda found: _short(found[0]), text)


def git_commit() -> str | None:
    """Commit of the working tree this code is in, `-dirty` behind it when files differ; None outside of one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + ("-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    # Without locks: `git status` would otherwise write its refreshed index into the repository.
    command = ["git", "--no-optional-locks", *arguments]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=True, timeout=10, stdin=subprocess.DEVNULL
    )
    return done.stdout.strip()


def _short(argument: str) -> str:
    separators = [os.sep] + ([os.altsep] if os.altsep else [])
    return Path(argument).name or argument if any(one in argument for one in separators) else argument


def _clock_mhz(facts: Mapping[str, str]) -> float | None:
    """What a core runs at now."""
    text = _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"))
    if text and text.isdigit():
        return int(text) / 1000
    return round(float(facts["cpu MHz"]), 1) if "cpu MHz" in facts else None


def _huge_pages() -> str | None:
    text = _first_line(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    return text.partition("[")[2].partition("]")[0] if text else None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").splitlines()[0].strip()
    except (OSError, IndexError, UnicodeDecodeError):
        return None
