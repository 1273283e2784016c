"""A bundle's `drafts/`: n-grams of a site's reports, and of what the model wrote itself. Token ids only, no text.

`reports-HASH.npy`: int32 [2, P], corpus and order (`SortedNgrams`), a file of the bundle like any other.
`learned.bin`: the model's own reports, newest last; records of count, CRC-32 and int32 token ids. It grows while
reports are generated, is bounded, survives a kill (a torn record is cut off) and several processes (a lock).
Reports are patient data, and token ids can be turned into text: `r2gen drafts wipe` removes them.
"""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import numpy as np

from r2gen_export.atomic import atomic_file
from r2gen_export.bundle import FileEntry, Manifest, replace_files
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.drafting import Drafter
from r2gen_export.runtime.ngrams import Ngrams, SortedNgrams

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
        with _locked(bundle):
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
    if saves and (learned := read_learned(bundle)):
        sources.append(SortedNgrams.build(learned))
    if (name := store_entry(manifest)) is not None:
        sources.append(_load(bundle / name))

    def save(tokens: Sequence[int]) -> None:
        # A read-only bundle, or a full disk, must not cost the report.
        with suppress(OSError):
            append_learned(bundle, tokens)

    return Drafter(sources, vocab_size=manifest.dims.vocab_size, save=save if saves and learn else None)


def describe(bundle: Path, manifest: Manifest) -> list[str]:
    """What the store holds, one line a source."""
    name = store_entry(manifest)
    learned = read_learned(bundle)
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


def read_learned(bundle: Path) -> list[tuple[int, ...]]:
    """The reports in `learned.bin`, oldest first, up to the first record that is not whole."""
    try:
        content = (bundle / LEARNED).read_bytes()
    except OSError:
        return []
    return [tokens for tokens, _ in _records(content)]


def append_learned(bundle: Path, tokens: Sequence[int]) -> None:
    """Add one report.

    Raises:
        OSError: when it cannot be written.
    """
    payload = np.array(tokens, "<i4").tobytes()
    record = HEADER.pack(len(tokens), zlib.crc32(payload)) + payload
    path = bundle / LEARNED
    with _locked(bundle):
        content = path.read_bytes() if path.exists() else b""
        ends = [end for _, end in _records(content)]
        whole = ends[-1] if ends else 0
        if whole + len(record) > MOST_BYTES:
            middle = next((end for end in ends if end >= whole // 2), whole)
            with atomic_file(path) as scratch:
                scratch.write_bytes(content[middle:whole] + record)
            return
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)  # a process was killed while it wrote
        with path.open("ab") as file:
            file.write(record)


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


@contextmanager
def _locked(bundle: Path) -> Iterator[None]:
    """Hold the store's lock; on systems without `fcntl` two processes may lose one another's last report."""
    with (bundle / LOCK).open("ab") as file:
        try:
            import fcntl
        except ImportError:
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
