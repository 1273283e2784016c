"""Bundles: whole ones open, damaged and hostile ones are refused with a code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from r2gen_export.bundle import (
    FORMAT_VERSION,
    MANIFEST,
    FileEntry,
    ReferenceLogits,
    bundle_id,
    demo_bundle,
    open_bundle,
    replace_files,
    safe_path,
    seal,
)
from r2gen_export.bundle.onnx_external import external_locations
from r2gen_export.errors import R2GenError

FILES = sorted(open_bundle(demo_bundle()).files)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle(), tmp_path / "bundle"))


def edit(bundle: Path, **changes: object) -> None:
    path = bundle / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(bundle: Path, code: str) -> None:
    with pytest.raises(R2GenError) as caught:
        open_bundle(bundle)
    assert caught.value.code == code
    assert caught.value.exit_status == 2


def test_sealing_again_gives_the_same_manifest(bundle: Path) -> None:
    manifest = open_bundle(bundle)
    assert seal(bundle, manifest) == manifest == open_bundle(bundle)
    assert bundle_id(manifest) == bundle_id(open_bundle(demo_bundle()))
    assert len(bundle_id(manifest)) == 12


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found_in_every_file(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    refused(bundle, "R2G-BUNDLE-HASH")
    (bundle / name).write_bytes(data[:-1])
    refused(bundle, "R2G-BUNDLE-HASH")
    (bundle / name).unlink()
    refused(bundle, "R2G-BUNDLE-MISSING")


def test_versions_and_manifests_that_are_not_ours(bundle: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "R2G-BUNDLE-MISSING")
    for changes in ({"format_version": 3}, {"format_version": 0}, {"format_version": True}, {"format": "other"}):
        edit(bundle, **changes)
        refused(bundle, "R2G-BUNDLE-VERSION")
        edit(bundle, format="r2gen-bundle", format_version=1)
    original = (bundle / MANIFEST).read_text()
    for changes in (
        {"model_id": 3},
        {"surprise": 1},
        {"dims": {"image_tokens": "49"}},
        {"semantics": "hf-9"},
        {"presets": []},
        {"default_preset": "none"},
        {"files": {}},
        {"synthetic": 1},
        {"target": "tpu"},
        {"reference": {"token_id": 1}},
        {"reference": {"token_id": 1, "vocab_ids": [0], "logits": [[0.5]], "scale": [1.0, 1.0]}},
    ):
        (bundle / MANIFEST).write_text(original)
        edit(bundle, **changes)
        refused(bundle, "R2G-BUNDLE-MANIFEST")
    for text in ("", "[]", "{", "[" * 100_000):
        (bundle / MANIFEST).write_text(text)
        refused(bundle, "R2G-BUNDLE-MANIFEST")


REFERENCE = ReferenceLogits(7, (0, 3), ((0.5, -1.0), (2.0, 0.25)), (3.0, 4.0))


def test_bundles_of_the_first_format_keep_loading(bundle: Path) -> None:
    """Without the second's fields, which are not added when the manifest is written anew."""
    edit(bundle, format_version=1)
    fields = json.loads((bundle / MANIFEST).read_text())
    for name in ("target", "reference"):
        fields.pop(name, None)
    (bundle / MANIFEST).write_text(json.dumps(fields))
    manifest = open_bundle(bundle)
    assert (manifest.format_version, manifest.target, manifest.reference) == (1, None, None)
    replace_files(bundle, manifest, drop=None, add={})
    again = json.loads((bundle / MANIFEST).read_text())
    assert again["format_version"] == 1
    assert not {"target", "reference"} & again.keys()


def test_reference_logits_and_target_outlive_a_change_of_files(bundle: Path) -> None:
    manifest = replace(open_bundle(bundle), target="gpu", reference=REFERENCE, format_version=FORMAT_VERSION)
    sealed = seal(bundle, manifest)
    replace_files(bundle, sealed, drop=None, add={"drafts/store": FileEntry(0, hashlib.sha256(b"").hexdigest())})
    (bundle / "drafts").mkdir()
    (bundle / "drafts/store").touch()
    changed = open_bundle(bundle)
    assert (changed.target, changed.reference, changed.format_version) == ("gpu", REFERENCE, 2)
    assert bundle_id(changed) == bundle_id(sealed)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\\..\\x", "C:x", "", "a\0b"])
def test_paths_out_of_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(R2GenError, match="R2G-BUNDLE-PATH"):
        safe_path(tmp_path, name)


def graph_with_weights_in(bundle: Path, location: str, where: str = "initializer") -> None:
    """Replace the decoder by a graph that keeps a tensor in `location`, and give it its right hash."""
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    if where == "initializer":
        graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [out], [tensor])
    else:
        inner = helper.make_graph([helper.make_node("Constant", [], ["z"], value=tensor)], "inner", [], [out])
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
        graph = helper.make_graph([node], "g", [], [out])
    (bundle / "decoder/model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert external_locations(bundle / "decoder/model.onnx") == {location}
    manifest = json.loads((bundle / MANIFEST).read_text())
    data = (bundle / "decoder/model.onnx").read_bytes()
    manifest["files"]["decoder/model.onnx"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize("where", ["initializer", "subgraph"])
@pytest.mark.parametrize("way", ["dots", "absolute", "unlisted link", "unlisted hard link", "unlisted"])
def test_external_data_that_leaves_the_folder(bundle: Path, tmp_path: Path, way: str, where: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(16))
    link = bundle / "decoder/w.bin"
    location = {"dots": "../../secret", "absolute": str(secret)}.get(way, "w.bin")
    if way == "unlisted link":
        link.symlink_to(secret)
    elif way == "unlisted hard link":
        os.link(secret, link)
    elif way == "unlisted":
        link.write_bytes(bytes(16))
    graph_with_weights_in(bundle, location, where)
    refused(bundle, "R2G-BUNDLE-PATH")


def test_real_external_data_is_found_as_onnx_writes_it(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones(4096, np.float32), "w")
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4096])
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [out], [weights])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    assert external_locations(path) == {"m.onnx.data"}
    path.write_bytes(b"\xff location" * 40)
    with pytest.raises(R2GenError, match="R2G-BUNDLE-GRAPH"):
        external_locations(path)
