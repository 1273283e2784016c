"""Make onnxruntime-gpu small enough to travel: one archive with the package, its CUDA kernels for Hopper (sm_90) only.

The wheel holds machine code for six architectures, 219 MB of it in the section `.nv_fatbin`. Payloads for others are
overwritten with zeros, which changes no offset, and so are kernels the check never runs (mixture of experts, Hopper's
TMA GEMMs for weights packed for them, flash attention in bfloat16 or for head sizes other than 32, 64 and 128). The
driver picks an entry by its header, and loads a module when one of its kernels is first launched, so what is left out
is not missed.
"""

from __future__ import annotations

import io
import lzma
import mmap
import re
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zstandard

HOPPER: Final = 90
MAGIC: Final = 0xBA55ED50
ELF: Final = 2
SKIPPED: Final = (
    *("/libonnxruntime.so", "/transformers/", "/quantization/", "/tools/", "/datasets/", "/backend/"),
    "ThirdParty",
)
"""Parts of the wheel that inference in Python does not use."""

HEADS: Final = {32, 64, 128}
"""Head sizes of the models of the check."""


@dataclass(frozen=True)
class Entry:
    """Machine code in a fat binary: its architecture, place and bytes, and how many of them are in use (zstd)."""

    architecture: int
    start: int
    length: int
    used: int


def slim(wheel: Path, archive: Path) -> tuple[int, int]:
    """Write `archive` (tar.xz) from a wheel of onnxruntime-gpu. Returns bytes of kernels that stay and that go."""
    stays = goes = 0
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as content:
        content.extractall(scratch, [name for name in content.namelist() if not _skipped(name)])
        for library in Path(scratch).rglob("libonnxruntime_providers_cuda.so"):
            stays, goes = _prune(library)
        with lzma.open(archive, "wb", preset=3) as out, tarfile.open(fileobj=out, mode="w|") as tar:
            for path in sorted(Path(scratch).rglob("*")):
                if path.is_file():
                    info = tar.gettarinfo(path, path.relative_to(scratch).as_posix())
                    info.mode, info.uid, info.gid, info.mtime = 0o755, 0, 0, 0
                    with path.open("rb") as file:
                        tar.addfile(info, file)
    return stays, goes


def _skipped(name: str) -> bool:
    return any(part in f"/{name}" for part in SKIPPED)


def _prune(library: Path) -> tuple[int, int]:
    stays = goes = 0
    with library.open("r+b") as file:
        offset, size = _section(file, ".nv_fatbin")
        memory = mmap.mmap(file.fileno(), 0)
        for entries in _containers(memory, offset, offset + size):
            needed = _needed(memory, entries)
            for entry in entries:
                if entry in needed:
                    stays += entry.length
                else:
                    memory[entry.start : entry.start + entry.length] = bytes(entry.length)
                    goes += entry.length
        memory.flush()
    return stays, goes


def _needed(memory: mmap.mmap, entries: list[Entry]) -> list[Entry]:
    """Entries of a fat binary that stay."""
    hopper = [entry for entry in entries if entry.architecture == HOPPER]
    if not hopper:
        return entries  # what is for no architecture in particular
    # Code for Hopper alone is its TMA GEMMs.
    return hopper if len(entries) > 1 and _runs(memory, hopper[0]) else []


def _runs(memory: mmap.mmap, entry: Entry) -> bool:
    """Whether machine code has kernels the check may launch, by their names."""
    compressed = memory[entry.start : entry.start + entry.used]
    code = zstandard.ZstdDecompressor().decompress(compressed, max_output_size=1 << 28)
    names = set(re.findall(rb"\.text\.(_Z\w+)", code))
    flash = [name for name in names if b"flash_fwd" in name]
    if flash and len(flash) == len(names):
        sizes = {int(size) for name in flash for size in re.findall(rb"kernel_traitsILi(\d+)E", name)}
        return any(b"half_t" in name for name in flash) and bool(sizes & HEADS or not sizes)
    return not (names and all(b"moe" in name.lower() for name in names))


def _containers(memory: mmap.mmap, start: int, end: int) -> Iterator[list[Entry]]:
    """Entries with machine code of every fat binary of a section."""
    at = start
    while at < end - 16:
        magic, _, header, size = struct.unpack_from("<IHHQ", memory, at)
        if magic != MAGIC:
            at += 8
            continue
        place, stop, entries = at + header, at + header + size, []
        while place < stop:
            kind, _, head, length, used = struct.unpack_from("<HHIQI", memory, place)
            architecture = struct.unpack_from("<I", memory, place + 28)[0]
            if kind == ELF:
                entries.append(Entry(architecture, place + head, length, used or length))
            place += head + length
        yield entries
        at = stop


def _section(file: io.BufferedRandom, name: str) -> tuple[int, int]:
    """Offset and size of a section of an ELF64 file."""
    file.seek(0)
    header = file.read(64)
    table = struct.unpack_from("<Q", header, 40)[0]
    width, count, names_at = struct.unpack_from("<HHH", header, 58)
    file.seek(table)
    raw = file.read(width * count)
    sections = [struct.unpack_from("<IIQQQQIIQQ", raw, index * width) for index in range(count)]
    file.seek(sections[names_at][4])
    names = file.read(sections[names_at][5])
    for section in sections:
        if names[section[0] : names.index(b"\0", section[0])].decode() == name:
            return section[4], section[5]
    raise ValueError(f"no section {name}")
