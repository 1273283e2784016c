"""A bundle's `drafts/`: n-grams of a site's reports, and of what the model wrote itself. Token ids only, no text.

`reports-HASH.npy`: int32 [2, P], corpus and order (`SortedNgrams`), a file of the bundle like any other.
`learned.bin`: the model's own reports, newest last; records of count, CRC-32 and int32 token ids. It grows while
reports are generated, is bounded, survives a kill (a torn record is cut off) and several processes (a lock).
Reports are patient data, and token ids can be turned into text: `r2gen drafts wipe` removes them.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np

from r2gen_export.bundle import FileEntry, Manifest, replace_files
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.drafting.drafter import Drafter
from r2gen_export.runtime.drafting.ngrams import Ngrams, SortedNgrams
from r2gen_export.system.files import atomic_file
from r2gen_export.system.locks import file_lock

FOLDER: Final = "drafts"
LEARNED: Final = f"{FOLDER}/learned.bin"
LOCK: Final = f"{FOLDER}/lock"

HEADER: Final = struct.Struct("<II")

MOST_BYTES: Final = 1 << 20
"""Of `learned.bin`, about 2,600 reports of 100 tokens; beyond it the older half goes."""

LONGEST_REPORT: Final = 1 << 16
"""Tokens of one record; more is no record."""


def store_entry(manifest: Manifest) -> str | None:
    """The bundle's file of other people's reports, None when it has none."""
    return next((name for name in manifest.files if name.startswith(f"{FOLDER}/reports-")), None)


def build_store(bundle: Path, manifest: Manifest, sequences: Sequence[Sequence[int]]) -> Manifest:
    """Put token sequences, each with its EOS, into a bundle in the place of the reports it had.

    Killed at any moment, this leaves the bundle with its old store or its new one.

    Raises:
        R2GenError: `R2G-DATA-EMPTY`, `R2G-OUTPUT-WRITE`.
    """
    if not sequences:
        raise R2GenError("R2G-DATA-EMPTY", "no report to draft from", "name a file with reports")
    tokens, order = SortedNgrams.build(sequences).arrays
    both = np.full((2, len(tokens)), -1, np.int32)
    both[0], both[1, : len(order)] = tokens, order
    buffer = io.BytesIO()
    np.save(buffer, both)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    name = f"{FOLDER}/reports-{digest[:12]}.npy"
    with atomic_file(bundle / name) as scratch:
        scratch.write_bytes(content)
    before = store_entry(manifest)
    sealed = replace_files(bundle, manifest, drop=before, add={name: FileEntry(len(content), digest)})
    if before is not None and before != name:
        (bundle / before).unlink(missing_ok=True)
    return sealed


def wipe_store(bundle: Path, manifest: Manifest, *, learned_only: bool = False) -> None:
    """Remove what the model wrote itself, and unless `learned_only` the site's reports too.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE`.
    """
    before = None if learned_only else store_entry(manifest)
    if before is not None:
        replace_files(bundle, manifest, drop=before, add={})
        (bundle / before).unlink(missing_ok=True)
    if has_store(bundle):
        with file_lock(bundle / LOCK):
            (bundle / LEARNED).unlink(missing_ok=True)


def open_drafter(bundle: Path, manifest: Manifest, *, learn: bool = True) -> Drafter:
    """A drafter with what the bundle's `drafts/` holds.

    Args:
        bundle: the folder, its files checked.
        manifest: its manifest.
        learn: save what is written to `learned.bin`; only where the bundle has a `drafts/`.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when the store is not one.
    """
    sources: list[Ngrams] = []
    saves = has_store(bundle)
    learned = Learned(bundle)
    if saves and (reports := learned.read()):
        sources.append(SortedNgrams.build(reports))
    if (name := store_entry(manifest)) is not None:
        sources.append(_load(bundle / name))

    def save(tokens: Sequence[int]) -> None:
        # A read-only bundle, or a full disk, must not cost the report.
        with suppress(OSError, R2GenError):
            learned.append(tokens)

    return Drafter(sources, vocab_size=manifest.dims.vocab_size, save=save if saves and learn else None)


def describe(bundle: Path, manifest: Manifest) -> list[str]:
    """What the store holds, one line a source."""
    name = store_entry(manifest)
    learned = Learned(bundle).read()
    lines = ["no store; r2gen drafts build makes one"] if not has_store(bundle) else []
    if name is not None:
        tokens, _ = _load(bundle / name).arrays
        lines.append(f"site: {np.count_nonzero(tokens < 0)} reports, {np.count_nonzero(tokens >= 0)} tokens")
    if has_store(bundle):
        lines.append(f"learned: {len(learned)} reports, {sum(map(len, learned))} tokens")
    return lines


def has_store(bundle: Path) -> bool:
    """Whether a bundle drafts without being told to."""
    return (bundle / FOLDER).is_dir()


def _load(path: Path) -> SortedNgrams:
    try:
        both = np.load(path, mmap_mode="r", allow_pickle=False)
        if both.dtype != np.int32 or both.ndim != 2 or len(both) != 2:
            raise ValueError(f"{both.dtype} {list(both.shape)}")
    except (OSError, ValueError) as error:
        message = f"{path.name} is no store of n-grams: {error}"
        raise R2GenError("R2G-BUNDLE-GRAPH", message, "r2gen drafts build") from error
    order = both[1]
    return SortedNgrams(both[0], order[: np.count_nonzero(order >= 0)])


class Learned:
    """A bundle's `learned.bin`. It remembers how far it has seen the file whole, so that adding a report reads no more
    than what other processes have added since.
    """

    def __init__(self, bundle: Path) -> None:
        self._bundle, self._path = bundle, bundle / LEARNED
        self._inode, self._known = 0, 0

    def read(self) -> list[tuple[int, ...]]:
        """The reports, oldest first, up to the first record that is not whole."""
        try:
            with self._path.open("rb") as file:
                self._inode, content = os.fstat(file.fileno()).st_ino, file.read()
        except OSError:
            return []
        found = list(_records(content))
        self._known = found[-1][1] if found else 0
        return [tokens for tokens, _ in found]

    def append(self, tokens: Sequence[int]) -> None:
        """Add one report.

        Raises:
            OSError: when it cannot be written.
            R2GenError: `R2G-OUTPUT-WRITE`, when the store cannot be locked or the older half cannot be dropped.
        """
        payload = np.array(tokens, "<i4").tobytes()
        record = HEADER.pack(len(tokens), zlib.crc32(payload)) + payload
        with file_lock(self._bundle / LOCK):
            self._unlink_from_others()
            with self._path.open("a+b") as file:
                whole = self._whole(file)
                if whole + len(record) <= MOST_BYTES:
                    file.truncate(whole)  # a process may have been killed while it wrote
                    file.write(record)
                    file.flush()
                    self._inode, self._known = os.fstat(file.fileno()).st_ino, whole + len(record)
                    return
            self._drop_older_half(record)

    def _unlink_from_others(self) -> None:
        """Make a linked file one of its own: adding to it would change what another bundle or a hub's cache holds."""
        try:
            state = self._path.lstat()
        except FileNotFoundError:
            return
        if stat.S_ISLNK(state.st_mode) or state.st_nlink > 1:
            content = self._path.read_bytes()
            with atomic_file(self._path) as scratch:
                scratch.write_bytes(content)

    def _whole(self, file: BinaryIO) -> int:
        """Bytes up to the end of the last record that is whole."""
        state = os.fstat(file.fileno())
        if state.st_ino == self._inode and state.st_size >= self._known:
            file.seek(self._known)
            end = self._known + _whole_bytes(file.read())
            if end == state.st_size:
                return end
        # Another file under this name, or a torn record: only a look at all of it tells.
        file.seek(0)
        return _whole_bytes(file.read())

    def _drop_older_half(self, record: bytes) -> None:
        content = self._path.read_bytes()
        ends = [end for _, end in _records(content)]
        whole = ends[-1] if ends else 0
        middle = next((end for end in ends if end >= whole // 2), whole)
        with atomic_file(self._path) as scratch:
            scratch.write_bytes(content[middle:whole] + record)
        self._inode, self._known = self._path.stat().st_ino, whole - middle + len(record)


def _whole_bytes(content: bytes) -> int:
    """Where the last whole record ends."""
    return max((end for _, end in _records(content)), default=0)


def _records(content: bytes) -> Iterator[tuple[tuple[int, ...], int]]:
    """Token ids of each whole record, and where it ends."""
    start = 0
    while start + HEADER.size <= len(content):
        count, checksum = HEADER.unpack_from(content, start)
        end = start + HEADER.size + 4 * count
        payload = content[start + HEADER.size : end]
        if count > LONGEST_REPORT or end > len(content) or zlib.crc32(payload) != checksum:
            return
        yield tuple(np.frombuffer(payload, "<i4").tolist()), end
        start = end
