"""Bundles made of links: a model hub's cache, `cp -al`. They open when the content is the manifest's, and give the same
reports; writing to them leaves what they link to as it is."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from r2gen_export.bundle import (
    DECODER,
    MANIFEST,
    VISION,
    FileEntry,
    demo_bundle,
    open_bundle,
    replace_files,
    safe_path,
    seal,
)
from r2gen_export.bundle.onnx_external import external_locations, relocated
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.backends.linked_graph import linked_weights, without_links
from r2gen_export.runtime.backends.openvino_decoder import OpenVinoDecoder
from r2gen_export.runtime.backends.ort_providers import CPU
from r2gen_export.runtime.backends.ort_session import open_session
from r2gen_export.runtime.drafting.store import Learned
from r2gen_export.system.files import atomic_file
from tests.command import run_here

PHANTOM = Path(__file__).parents[1] / "data/phantom.png"


def in_a_hub_cache(bundle: Path, root: Path) -> Path:
    """As `huggingface_hub` lays out a download: every file a link to one named by its hash."""
    blobs, snapshot = root / "blobs", root / "snapshots/0123abc"
    blobs.mkdir(parents=True)
    for file in (path for path in bundle.rglob("*") if path.is_file()):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copyfile(file, blob)
        link = snapshot / file.relative_to(bundle)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def hard_linked(bundle: Path, root: Path) -> Path:
    """As `cp -al` copies."""
    return Path(shutil.copytree(bundle, root, copy_function=os.link))


def weights_linked(bundle: Path, root: Path) -> Path:
    """A copy whose decoder is a file, and its weights a link to another folder."""
    copy = Path(shutil.copytree(bundle, root / "bundle"))
    (root / "elsewhere").mkdir()
    weights = copy / f"{DECODER}.data"
    weights.rename(root / "elsewhere/weights")
    weights.symlink_to(root / "elsewhere/weights")
    return copy


Layout = Callable[[Path, Path], Path]
LAYOUTS = (in_a_hub_cache, hard_linked, weights_linked)


@pytest.fixture(scope="module")
def external(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded bundle with its weights in files of their own."""
    bundle = Path(shutil.copytree(demo_bundle(), tmp_path_factory.mktemp("external") / "bundle"))
    for graph in (bundle / DECODER, bundle / VISION):
        proto = onnx.load(graph)
        graph.unlink()
        onnx.save(proto, graph, save_as_external_data=True, location=f"{graph.name}.data", size_threshold=1024)
    seal(bundle, open_bundle(demo_bundle()))
    return bundle


@pytest.fixture(scope="module")
def report(external: Path) -> str:
    return infer(external)


def infer(bundle: Path) -> str:
    """Token ids and text of a report."""
    done = run_here("infer", PHANTOM, "--bundle", bundle, "--format", "json")
    assert done.returncode == 0, done.stderr
    fields = json.loads(done.stdout)
    return json.dumps([fields["bundle_id"], fields["token_ids"], fields["text"]])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle(), tmp_path / "bundle"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_linked_weights_give_the_same_report(external: Path, report: str, tmp_path: Path, layout: Layout) -> None:
    assert infer(layout(external, tmp_path / "linked")) == report


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_the_embedded_bundle_in_links(tmp_path: Path, layout: Layout) -> None:
    assert infer(layout(demo_bundle(), tmp_path / "linked")) == infer(demo_bundle())


def test_a_folder_that_is_a_link(external: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(external, tmp_path / "bundle"))
    (copy / "decoder").rename(tmp_path / "elsewhere")
    (copy / "decoder").symlink_to(tmp_path / "elsewhere")
    open_bundle(copy)
    assert linked_weights(copy / DECODER) == {}
    open_session(copy / DECODER, providers=[CPU], threads=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_openvino_reads_linked_weights(tiny_bundle: Path, tmp_path: Path, layout: Layout) -> None:
    pytest.importorskip("openvino")
    linked, cache = layout(tiny_bundle, tmp_path / "linked"), tmp_path / "cache"
    assert external_locations(linked / DECODER)
    plain = run_here("infer", PHANTOM, "--bundle", tiny_bundle, "--device", "openvino")
    assert plain.returncode == 0, plain.stderr
    done = run_here("infer", PHANTOM, "--bundle", linked, "--device", "openvino", R2GEN_CACHE=str(cache))
    assert (done.returncode, done.stdout) == (0, plain.stdout)
    assert not list(cache.glob("*"))


def test_without_hard_links_openvino_says_what_mends_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another disk, or with files of another user."""
    pytest.importorskip("openvino")
    linked = in_a_hub_cache(tiny_bundle, tmp_path / "linked")

    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    monkeypatch.setenv("R2GEN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(R2GenError, match="R2G-BUNDLE-GRAPH") as caught:
        OpenVinoDecoder(linked / DECODER, open_bundle(linked).dims)
    assert "cp -rL" in caught.value.fix
    assert not list(tmp_path.rglob(".r2gen-links-*"))


def test_a_plain_graph_is_opened_where_it_is(external: Path) -> None:
    with without_links(external / DECODER) as path:
        assert path == external / DECODER


def test_relocated_changes_locations_only(external: Path, tmp_path: Path) -> None:
    graph = external / DECODER
    (location,) = external_locations(graph)
    assert relocated(graph, {location: location}) == graph.read_bytes()
    moved = tmp_path / "moved.onnx"
    moved.write_bytes(relocated(graph, {location: "x" * 300}))
    assert external_locations(moved) == {"x" * 300}
    moved.write_bytes(relocated(moved, {"x" * 300: location}))
    assert onnx.load(moved, load_external_data=False) == onnx.load(graph, load_external_data=False)


@pytest.mark.parametrize("name", [VISION, f"{DECODER}.data", "decoder/config.json"])
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_another_content_behind_a_link(external: Path, tmp_path: Path, layout: Layout, name: str) -> None:
    linked = layout(external, tmp_path / "linked")
    content = bytearray((linked / name).read_bytes())
    content[-1] ^= 1
    other = tmp_path / "other"
    other.write_bytes(content)
    (linked / name).unlink()
    (linked / name).symlink_to(other)
    refused(linked, "R2G-BUNDLE-HASH")
    other.write_bytes(content[:-1])
    refused(linked, "R2G-BUNDLE-HASH")


def refused(bundle: Path, code: str) -> str:
    with pytest.raises(R2GenError) as caught:
        open_bundle(bundle)
    assert caught.value.code == code
    return caught.value.message


@pytest.mark.parametrize("name", [MANIFEST, VISION, DECODER])
@pytest.mark.parametrize("kind", ["loop", "dangling", "fifo", "link to a fifo", "folder", "device"])
def test_what_is_no_file_is_refused_at_once(bundle: Path, tmp_path: Path, name: str, kind: str) -> None:
    path = bundle / name
    path.unlink()
    if kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("../blobs/gone")
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        fifo = path if kind == "fifo" else tmp_path / "fifo"
        os.mkfifo(fifo)
        if fifo != path:
            path.symlink_to(fifo)
    if kind == "fifo":  # in a process that is ended when it waits
        done = run_here("infer", PHANTOM, "--bundle", bundle)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    message = refused(bundle, "R2G-BUNDLE-MISSING")
    assert ("no regular file" in message) == (kind in ("fifo", "link to a fifo", "device"))


def test_links_are_not_sealed_nor_written_through(bundle: Path, tmp_path: Path) -> None:
    manifest = open_bundle(bundle)
    (bundle / "decoder/extra").symlink_to(bundle / VISION)
    for refuse in (lambda: seal(bundle, manifest), lambda: safe_path(bundle, "decoder/extra")):
        with pytest.raises(R2GenError, match="R2G-BUNDLE-PATH"):
            refuse()


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_writing_leaves_what_is_linked_to_alone(bundle: Path, tmp_path: Path, layout: Layout) -> None:
    (bundle / "drafts").mkdir()
    Learned(bundle).append([5, 6, 2])
    linked = layout(bundle, tmp_path / "linked")
    before = {
        path: path.read_bytes() for path in (*bundle.rglob("*"), *tmp_path.glob("linked/blobs/*")) if path.is_file()
    }
    content = b"more"
    with atomic_file(linked / "drafts/store") as scratch:
        scratch.write_bytes(content)
    entry = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    replace_files(linked, open_bundle(linked), drop=None, add={"drafts/store": entry})
    learned = Learned(linked)
    for report in ([7, 8, 2], [9, 2]):
        learned.append(report)
    assert {path: path.read_bytes() for path in before} == before
    assert Learned(linked).read() == [(5, 6, 2), (7, 8, 2), (9, 2)]
    assert "drafts/store" in open_bundle(linked).files
    (tmp_path / "reports.txt").write_text("The lungs are clear.\n", encoding="utf-8")
    for command in (("build", linked, "--reports", tmp_path / "reports.txt"), ("wipe", linked)):
        done = run_here("drafts", *command)
        assert done.returncode == 0, done.stderr
        assert {path: path.read_bytes() for path in before} == before
