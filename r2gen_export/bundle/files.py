"""A bundle's folder: open and verify it, seal it, replace some of its files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Final

from r2gen_export.bundle.manifest import FORMAT, MANIFEST, READABLE, REQUIRED_FILES, FileEntry, Manifest
from r2gen_export.bundle.manifest_json import REEXPORT, decode_fields, malformed, shown, shown_name
from r2gen_export.bundle.manifest_values import check_values
from r2gen_export.bundle.onnx_external import external_locations
from r2gen_export.errors import R2GenError
from r2gen_export.system.files import atomic_file
from r2gen_export.system.paths import require_utf8
from r2gen_export.system.regular_file import open_regular, size_and_sha256, why_unread

NAME_ONE: Final = "name a folder that r2gen export wrote, as BUNDLE, --bundle or R2GEN_BUNDLE"
RECOPY: Final = "copy the bundle again, or export it again with r2gen export"


def demo_bundle() -> Path:
    """Path of the embedded demo bundle, trained on synthetic phantoms."""
    return Path(__file__).parents[1] / "demo" / "bundle"


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed_path(bundle: Path, relative: str) -> Path:
    """The path of a bundle's file to read; it may be a link, as in a model hub's cache.

    Args:
        bundle: the folder.
        relative: POSIX path from a manifest or a graph, not to be trusted.

    Raises:
        R2GenError: `R2G-BUNDLE-PATH` for an absolute path, `..`, a backslash, a drive letter, unprintable characters.
    """
    parts = PurePosixPath(relative).parts
    plain = parts and not PurePosixPath(relative).is_absolute() and ".." not in parts and relative.isprintable()
    if not plain or "\\" in relative or PureWindowsPath(relative).drive:
        raise _outside(f"{shown(relative)} is not a path inside the bundle")
    return bundle.joinpath(*parts)


def safe_path(bundle: Path, relative: str) -> Path:
    """The path of a bundle's file to write or seal: as `listed_path`, and it lies in the bundle's folder.

    Raises:
        R2GenError: `R2G-BUNDLE-PATH` for what `listed_path` refuses, and for a symbolic link.
    """
    path = bundle
    for part in listed_path(bundle, relative).relative_to(bundle).parts:
        path = path / part
        if path.is_symlink():
            raise _outside(f"{shown(relative)} is, or passes through, a symbolic link")
    return path


def load_manifest(bundle: Path) -> Manifest:
    """Read and validate `manifest.json`: every field is there, of its type and in its range, and there is no other.

    Raises:
        R2GenError: `R2G-BUNDLE-MISSING`, `R2G-BUNDLE-VERSION`, `R2G-BUNDLE-MANIFEST`; `R2G-CONFIG-VALUE` when the
            bundle's path is not UTF-8.
    """
    require_utf8(bundle, "the bundle")
    path = bundle / MANIFEST
    try:
        with open_regular(path) as content:
            fields = json.loads(content.read().decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = f"holds no {MANIFEST}" if bundle.is_dir() else "is not there"
        raise R2GenError("R2G-BUNDLE-MISSING", f"the bundle's folder {missing}", NAME_ONE) from error
    except OSError as error:
        message = f"{MANIFEST} of the bundle cannot be read: {why_unread(error)}"
        raise R2GenError("R2G-BUNDLE-MISSING", message, NAME_ONE) from error
    except (ValueError, RecursionError) as error:
        raise R2GenError("R2G-BUNDLE-MANIFEST", f"{MANIFEST} is not JSON", REEXPORT) from error
    if not isinstance(fields, dict):
        raise R2GenError("R2G-BUNDLE-MANIFEST", f"{MANIFEST} holds no object", REEXPORT)
    found = (fields.get("format"), fields.get("format_version"))
    if found[0] != FORMAT or found[1] not in READABLE or isinstance(found[1], bool):
        readable = " and ".join(map(str, READABLE))
        says = f"{MANIFEST} says {shown(found[0])} version {shown(found[1])}"
        message = f"{says}; this release reads {FORMAT!r} {readable}"
        raise R2GenError("R2G-BUNDLE-VERSION", message, "export the bundle again with this release, or upgrade r2gen")
    manifest: Manifest = decode_fields(Manifest, fields, "")
    if lacking := [name for name in REQUIRED_FILES if name not in manifest.files]:
        raise malformed("files", f"lacks {', '.join(lacking)}")
    if manifest.default_preset not in manifest.presets:
        raise malformed("default_preset", f"{shown(manifest.default_preset)} is not one of the presets")
    check_values(manifest)
    return manifest


def verify_files(bundle: Path, manifest: Manifest) -> None:
    """Check size and SHA-256 of every file, and that the graphs' external data are files of this bundle.

    Files may be links: what is hashed is the content of the file that was opened, wherever it lies. That holds for this
    moment. Files are opened again by path for use, so who can write to them, or to the folder, can change them later.

    Raises:
        R2GenError: `R2G-BUNDLE-MISSING`, `R2G-BUNDLE-HASH`, `R2G-BUNDLE-PATH`, `R2G-BUNDLE-GRAPH`.
    """
    for name, entry in manifest.files.items():
        path, file = listed_path(bundle, name), shown_name(name)
        try:
            size, digest = size_and_sha256(path, entry.size)
        except OSError as error:
            message = f"{file} cannot be read: {why_unread(error)}"
            raise R2GenError("R2G-BUNDLE-MISSING", message, RECOPY) from error
        if digest is None:
            raise R2GenError(
                "R2G-BUNDLE-HASH", f"{file} has {size} bytes, the manifest says {shown(entry.size)}", RECOPY
            )
        if digest != entry.sha256:
            said = shown_name(entry.sha256[:12])
            message = f"{file} has SHA-256 {digest[:12]}..., the manifest says {said}..."
            raise R2GenError("R2G-BUNDLE-HASH", message, RECOPY)
    for name in manifest.files:
        if name.endswith(".onnx"):
            _check_external(bundle, name, manifest)


def open_bundle(bundle: Path) -> Manifest:
    """`load_manifest` and `verify_files`: what everybody calls before using a bundle."""
    manifest = load_manifest(bundle)
    verify_files(bundle, manifest)
    return manifest


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Hash every file of a finished folder and write `manifest.json` last.

    Returns:
        The manifest with `files` filled in, as written.

    Raises:
        R2GenError: `R2G-BUNDLE-PATH` when the folder holds a link or its graphs point out of it.
        OSError: when the manifest cannot be written.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST and (path.is_symlink() or path.is_file()):
            safe = safe_path(folder, name)
            files[name] = FileEntry(safe.stat().st_size, sha256_file(safe))
    sealed = dataclasses.replace(manifest, files=files)
    (folder / MANIFEST).write_text(sealed.to_json(), encoding="utf-8")
    for name in files:
        if name.endswith(".onnx"):
            _check_external(folder, name, sealed)
    return sealed


def replace_files(
    bundle: Path, manifest: Manifest, *, drop: str | None, add: typing.Mapping[str, FileEntry]
) -> Manifest:
    """Write a bundle's manifest anew with one file less and others more, at once or not at all.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE`.
    """
    files = {name: entry for name, entry in manifest.files.items() if name != drop} | dict(add)
    changed = dataclasses.replace(manifest, files=files)
    with atomic_file(bundle / MANIFEST) as scratch:
        scratch.write_text(changed.to_json(), encoding="utf-8")
    return changed


def _check_external(bundle: Path, graph: str, manifest: Manifest) -> None:
    """Refuse a graph whose weights lie outside: the SHA-256 of the graph says nothing about them."""
    folder = PurePosixPath(graph).parent
    for location in sorted(external_locations(listed_path(bundle, graph))):
        path = listed_path(bundle, str(folder / location) if not location.startswith("/") else location)
        if path.relative_to(bundle).as_posix() not in manifest.files:
            raise _outside(f"{graph} keeps weights in {location!r}, which the manifest does not list")


def _outside(message: str) -> R2GenError:
    return R2GenError("R2G-BUNDLE-PATH", message, "do not use this bundle; get it again from where it was exported")
