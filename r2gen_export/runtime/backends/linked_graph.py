"""Graphs whose weights are links, as in a model hub's cache: `model.onnx.data` leads to `../../blobs/SHA256`.

ONNX Runtime and OpenVINO refuse external data that lies outside the graph's folder once links are followed.
`open_bundle` has compared its content with the manifest, so the engines are shown where it lies.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final

from r2gen_export.bundle.onnx_external import external_locations, relocated
from r2gen_export.errors import R2GenError
from r2gen_export.system.cache_folder import cache_folder

UNLINK: Final = "cp -rL BUNDLE COPY, or hf download with --local-dir: a bundle without links"


def linked_weights(graph: Path) -> dict[str, Path]:
    """The files behind a graph's external data, by location; empty when they lie where the locations say."""
    try:
        if not any(path.is_symlink() for path in graph.parent.iterdir()):
            return {}  # without a look into the graph
        files = {location: (graph.parent / location).resolve() for location in external_locations(graph)}
    except (OSError, RuntimeError):  # the engine says what is wrong with it; RuntimeError: links in a circle
        return {}
    folder = graph.parent.resolve()
    inside = all(file == folder / PurePosixPath(location) for location, file in files.items())
    return {} if inside else files


def with_weights_in_place(graph: Path) -> tuple[bytes, Path] | None:
    """A graph whose weights are links, as a model that names the files behind them, and the folder it names them from.

    Returns:
        None when it has no such weights, or its files have no folder in common that can be named.
    """
    files = linked_weights(graph)
    try:
        common = Path(os.path.commonpath([file.parent for file in files.values()]))
        str(common).encode()
        return relocated(graph, {name: file.relative_to(common).as_posix() for name, file in files.items()}), common
    except ValueError:  # no files, two drives, or a name that is not UTF-8
        return None


@contextmanager
def without_links(graph: Path) -> Iterator[Path]:
    """A graph's path for an engine that reads files only: itself, or where weights are links, one in a private folder.

    The folder holds hard links, not copies, and goes when the block ends.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when no hard link can be made.
    """
    files = linked_weights(graph)
    if not files:
        yield graph
        return
    files[graph.name] = graph.resolve()
    for parent in (cache_folder(), Path(tempfile.gettempdir()), files[graph.name].parent):
        try:
            parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".r2gen-links-", dir=parent))
        except OSError:
            continue
        try:
            if _link(files, scratch):
                yield scratch / graph.name
                return
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    message = f"{graph.name}: its weights are links to files that cannot be linked to from a folder of one's own"
    raise R2GenError("R2G-BUNDLE-GRAPH", message, UNLINK)


def _link(files: dict[str, Path], folder: Path) -> bool:
    """Whether a hard link could be made for every file: another disk, or another user's files, may not allow it."""
    try:
        for location, file in files.items():
            if ".." in PurePosixPath(location).parts or PurePosixPath(location).is_absolute():
                return False
            path = folder / location
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(file)
    except OSError:
        return False
    return True
