"""Cache of the frozen encoder's output: computed once per image, kept on disk.

CACHE/KEY/ab/HASH.f32, where KEY stands for the encoder's weights, the preprocessing and `global_only`, and ab/HASH for
the content of the image file. An entry is a header with a checksum and T * C float32 values; Swin-base takes 200 kB an
image. An entry that does not fit its checksum is computed again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from r2gen_export.bundle import ImageSpec, sha256_file
from r2gen_export.errors import InternalError, R2GenError, cause_of
from r2gen_export.studies.refusal import reason_of
from r2gen_export.system.files import atomic_file
from r2gen_export.training.data import Study, read_view
from r2gen_export.training.hub import check_finite
from r2gen_export.training.progress import LOG_SECONDS, counted

HEADER: Final = struct.Struct("<4sIII")
MAGIC: Final = b"r2gf"
CONTENTS: Final = "contents.json"
BATCH: Final = 32


def cache_key(weights_sha256: str, spec: ImageSpec, global_only: bool) -> str:
    """32 hex digits for everything but the image that the features depend on."""
    parts = {"format": 2, "weights": weights_sha256, "image": dataclasses.asdict(spec), "global_only": global_only}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class FeatureCache:
    """Features [T, C] float32 of single views.

    Args:
        folder: the cache, shared by runs; made when the first entry is written.
        key: `cache_key(...)`.
        spec: preprocessing.
        encode: the frozen encoder, [N, 3, H, W] float32 -> [N, T, C].
    """

    def __init__(self, folder: Path, key: str, spec: ImageSpec, encode: Callable[[Tensor], Tensor]) -> None:
        self.folder = Path(folder) / key
        self._contents_file = Path(folder) / CONTENTS
        self._contents = _read_contents(self._contents_file)
        self._changed = False
        self._entries: dict[Path, Path] = {}
        self._spec = spec
        self._encode = encode

    def fill(self, studies: Sequence[Study], *, progress: bool = True, seconds: float = LOG_SECONDS) -> int:
        """Compute what is missing, and show how far it is on stderr as `counted` does.

        Returns:
            Number of images encoded.

        Raises:
            R2GenError: `R2G-IMAGE-*` with the place of the study, `R2G-OUTPUT-WRITE`.
        """
        missing: dict[Path, tuple[Study, int]] = {}
        try:
            with counted(shown=progress, seconds=seconds) as tell:
                for done, study in enumerate(studies, start=1):
                    for number in range(len(study.images)):
                        entry = self._entry(study, number)
                        if not entry.is_file():
                            missing[entry] = (study, number)
                    tell("studies whose features were looked up", done, len(studies))
                if missing:
                    self._compute(missing, lambda done: tell("images encoded", done, len(missing)))
        finally:
            self._write_contents()
        return len(missing)

    def study(self, study: Study) -> Tensor:
        """Features [T, C] of a study, averaged over its views. Raises as `fill`."""
        views = [self.view(study, number) for number in range(len(study.images))]
        return views[0] if len(views) == 1 else torch.stack(views).mean(0)

    def view(self, study: Study, number: int) -> Tensor:
        """Features [T, C] of one view; computed when its entry is missing or damaged."""
        entry = self._entry(study, number)
        found = _read_entry(entry)
        if found is None:
            self._compute({entry: (study, number)}, lambda _: None)
            found = _read_entry(entry)
        if found is None:
            raise R2GenError("R2G-OUTPUT-WRITE", "the feature cache does not keep what is written to it")
        return found

    def _compute(self, missing: dict[Path, tuple[Study, int]], tell: Callable[[int], None]) -> None:
        def load(entry: Path) -> Tensor:
            return read_view(*missing[entry], self._spec)

        names = list(missing)
        batches = [names[start : start + BATCH] for start in range(0, len(names), BATCH)]
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            try:
                # One batch is read while the other is encoded.
                waiting = [pool.submit(load, entry) for entry in batches[0]]
                for number, batch in enumerate(batches):
                    pixels = torch.cat([future.result() for future in waiting])
                    following = batches[number + 1] if number + 1 < len(batches) else []
                    waiting = [pool.submit(load, entry) for entry in following]
                    with torch.no_grad():
                        features = self._encode(pixels).float().cpu()
                    check_finite([("features", features)], "the output of the vision encoder")
                    for entry, values in zip(batch, features, strict=True):
                        _write_entry(entry, values)
                    tell(min((number + 1) * BATCH, len(names)))
            finally:
                pool.shutdown(cancel_futures=True)

    def _entry(self, study: Study, number: int) -> Path:
        """Where the features of an image file lie.

        Raises:
            R2GenError: `R2G-IMAGE-MISSING` when the file cannot be read; it is named by its place in the annotation.
        """
        path = study.images[number]
        known = self._entries.get(path)
        if known is not None:
            return known
        try:
            return self._looked_up(path)
        except OSError as error:
            message = f"{study.view(number)} cannot be read ({reason_of(error)})"
            raise R2GenError("R2G-IMAGE-MISSING", message, "check the path and its disk") from error
        except MemoryError:
            raise
        except Exception as error:  # its text may hold the path
            raise InternalError(f"{cause_of(error)} while reading {study.view(number)}") from error

    def _looked_up(self, path: Path) -> Path:
        """Files are hashed once; then size and time stand for the content."""
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        # The index must not carry file names.
        name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]
        recorded = self._contents.get(name)
        if recorded is None or recorded[:2] != stamp:
            recorded = [*stamp, sha256_file(path)]
            self._contents[name] = recorded
            self._changed = True
        digest = str(recorded[2])
        entry = self.folder / digest[:2] / f"{digest[2:]}.f32"
        self._entries[path] = entry
        return entry

    def _write_contents(self) -> None:
        if self._changed:
            with atomic_file(self._contents_file) as scratch:
                scratch.write_text(json.dumps(self._contents), encoding="utf-8")
            self._changed = False


def _read_contents(path: Path) -> dict[str, list[int | str]]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {name: value for name, value in record.items() if isinstance(value, list) and len(value) == 3}


def _write_entry(path: Path, values: Tensor) -> None:
    tokens, channels = values.shape
    data = values.contiguous().numpy().astype("<f4", copy=False).tobytes()
    with atomic_file(path) as scratch:
        scratch.write_bytes(HEADER.pack(MAGIC, zlib.crc32(data), tokens, channels) + data)


def _read_entry(path: Path) -> Tensor | None:
    """None when the entry is missing or damaged."""
    try:
        data = bytearray(path.read_bytes())
    except FileNotFoundError:
        return None
    if len(data) < HEADER.size:
        return None
    magic, checksum, tokens, channels = HEADER.unpack_from(data)
    body = memoryview(data)[HEADER.size :]
    if magic != MAGIC or len(body) != 4 * tokens * channels or zlib.crc32(body) != checksum:
        return None
    return torch.from_numpy(np.frombuffer(body, "<f4").reshape(tokens, channels))
