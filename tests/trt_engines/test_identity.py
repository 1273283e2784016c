"""What an engine says about itself, compared with the machine; the folder engines are kept in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from r2gen_export.bundle import Manifest, demo_bundle, load_manifest
from r2gen_export.errors import R2GenError
from trt_engines import store
from trt_engines.backends import load_backend, version_numbers
from trt_engines.identity import (
    PLAN,
    EngineIdentity,
    EngineMachine,
    Profile,
    Shapes,
    compare,
    read_identity,
    verify_plan,
)

ADA = EngineMachine("tensorrt-rtx", "1.7.1.116", "linux-x86_64", "8.9", "NVIDIA RTX 4000 Ada", "580.10")
PLAN_BYTES = b"a plan"


def make_identity(manifest: Manifest, **changes: object) -> EngineIdentity:
    sample = EngineIdentity(
        backend="tensorrt-rtx",
        version="1.7.1.116",
        platform="linux-x86_64",
        compute_capabilities=("8.6", "8.9"),
        gpu=None,
        driver=None,
        part="vision",
        precision="fp16",
        asked="int4",
        dialect="standard",
        bundle_id="0123456789ab",
        source_sha256=store.source_sha256(manifest, "vision"),
        onnx_sha256="0" * 64,
        max_length=None,
        profiles=(Profile("encode", {"pixel_values": Shapes((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}),),
        flags=(),
        plan_sha256=hashlib.sha256(PLAN_BYTES).hexdigest(),
        plan_bytes=len(PLAN_BYTES),
        timing_cache_sha256=None,
        options=("--max-views", "4"),
        created="2026-11-25T00:00:00+00:00",
        build_s=1.5,
        peak_rss_bytes=1,
        parameter_bytes=1,
        layer_source="network",
    )
    return dataclasses.replace(sample, **changes)  # type: ignore[arg-type]


@pytest.fixture
def manifest() -> Manifest:
    return load_manifest(demo_bundle())


def put(bundle: Path, identity: EngineIdentity, target: str = "a-target") -> Path:
    folder = store.engine_folder(bundle, target, identity.part)
    folder.mkdir(parents=True)
    (folder / PLAN).write_bytes(PLAN_BYTES)
    identity.write(folder)
    return folder


def test_an_identity_is_read_as_it_was_written(tmp_path, manifest):
    identity = make_identity(manifest)
    folder = put(tmp_path, identity)
    assert read_identity(folder) == identity
    verify_plan(folder, identity)


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({}, []),
        ({"driver": "999.0"}, []),
        ({"backend": "tensorrt"}, ["built for TensorRT-RTX, found TensorRT"]),
        ({"version": "1.8.0"}, ["built for version 1.7.1.116, found version 1.8.0"]),
        ({"platform": "windows-x86_64"}, ["built for linux-x86_64, found windows-x86_64"]),
        (
            {"compute_capability": "12.0", "gpu": "NVIDIA RTX PRO"},
            ["built for compute capability 8.6 or 8.9, found 12.0 (NVIDIA RTX PRO)"],
        ),
        (
            {"compute_capability": None, "gpu": None},
            ["built for a GPU of compute capability 8.6 or 8.9, found no GPU"],
        ),
    ],
)
def test_what_does_not_fit_is_said(manifest, machine, said):
    identity = make_identity(manifest)
    found = compare(identity, dataclasses.replace(ADA, **machine), source_sha256=identity.source_sha256)
    assert found == said


def test_a_tensorrt_plan_belongs_to_its_gpu_and_any_plan_to_its_bundle(manifest):
    identity = make_identity(manifest, backend="tensorrt", version="11.4.0.106", gpu="NVIDIA L4")
    here = dataclasses.replace(ADA, backend="tensorrt", version="11.4.0.106")
    assert compare(identity, here) == ["built for NVIDIA L4, found NVIDIA RTX 4000 Ada"]
    assert compare(identity, dataclasses.replace(here, gpu="NVIDIA L4")) == []
    (changed,) = compare(identity, dataclasses.replace(here, gpu="NVIDIA L4"), source_sha256="f" * 64)
    assert changed.startswith("built for ONNX ") and changed.endswith("found ONNX ffffffffffff")


def test_the_recipe_builds_it_again_here_or_elsewhere(manifest):
    identity = make_identity(manifest)
    recipe = identity.build_command(Path("my bundle"))
    assert recipe == (
        "r2gen build 'my bundle' --backend tensorrt-rtx --parts vision --precision int4 "
        "--compute-capability 8.6 --compute-capability 8.9 --max-views 4"
    )
    other = dataclasses.replace(ADA, compute_capability="12.0")
    assert "--compute-capability 12.0 --max-views" in identity.build_command(Path("b"), other)


@pytest.mark.parametrize("content", [PLAN_BYTES + b"!", b"A plan"], ids=["longer", "changed"])
def test_a_tampered_plan_is_refused(tmp_path, manifest, content):
    folder = put(tmp_path, make_identity(manifest))
    (folder / PLAN).write_bytes(content)
    with pytest.raises(R2GenError) as caught:
        verify_plan(folder, read_identity(folder))
    assert caught.value.code == "R2G-ENGINE-HASH"
    assert "r2gen build BUNDLE --backend" in caught.value.fix
    assert str(tmp_path) not in caught.value.render()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda fields: "{", "R2G-ENGINE-IDENTITY"),
        (lambda fields: "[]", "R2G-ENGINE-IDENTITY"),
        (lambda fields: json.dumps({**fields, "format_version": 2}), "R2G-ENGINE-IDENTITY"),
        (lambda fields: json.dumps({**fields, "plan_bytes": "many"}), "R2G-ENGINE-IDENTITY"),
        (lambda fields: json.dumps({**fields, "part": "lungs"}), "R2G-ENGINE-IDENTITY"),
        (lambda fields: json.dumps({**fields, "surprise": 1}), "R2G-ENGINE-IDENTITY"),
        (lambda fields: None, "R2G-ENGINE-MISSING"),
    ],
)  # fmt: skip
def test_a_broken_identity_is_no_engine(tmp_path, manifest, change, code):
    folder = put(tmp_path, make_identity(manifest))
    path = folder / "identity.json"
    text = change(json.loads(path.read_text()))
    path.write_text(text) if text is not None else path.unlink()
    with pytest.raises(R2GenError) as caught:
        read_identity(folder)
    assert caught.value.code == code
    assert "manifest.json" not in caught.value.message


def test_removing_takes_a_part_or_all(tmp_path, manifest):
    put(tmp_path, make_identity(manifest))
    put(tmp_path, make_identity(manifest, part="decoder"))
    with pytest.raises(R2GenError, match="there: a-target") as caught:
        store.remove_engines(tmp_path, "another")
    assert caught.value.code == "R2G-ENGINE-MISSING"
    assert store.remove_engines(tmp_path, "a-target", "vision") == len(PLAN_BYTES)
    assert [one.part for one in store.list_engines(tmp_path)] == ["decoder"]
    store.remove_engines(tmp_path, "a-target")
    assert store.list_engines(tmp_path) == []
    assert not (tmp_path / "engines/a-target").exists()


def test_a_target_cannot_lead_out_of_the_bundle(tmp_path):
    with pytest.raises(R2GenError) as caught:
        store.engine_folder(tmp_path, "../elsewhere", "vision")
    assert caught.value.code == "R2G-BUNDLE-PATH"
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines/link").symlink_to(tmp_path)
    with pytest.raises(R2GenError):
        store.engine_folder(tmp_path, "link", "vision")


def test_a_timing_cache_is_used_again_by_who_wrote_it(tmp_path):
    digest = store.write_timing_cache(tmp_path, b"timings", ADA)
    assert digest == hashlib.sha256(b"timings").hexdigest()
    assert store.read_timing_cache(tmp_path, ADA) == (b"timings", "")


@pytest.mark.parametrize(
    ("spoil", "machine", "reason"),
    [
        (lambda folder: (folder / "timing.cache").write_bytes(b"torn"), {}, "not as it was written"),
        (lambda folder: (folder / "timing.json").unlink(), {}, "nothing says"),
        (lambda folder: (folder / "timing.json").write_text('{"a": 1}'), {}, "nothing says"),
        (lambda folder: None, {"version": "1.8"}, "comes from tensorrt-rtx 1.7.1.116"),
        (lambda folder: None, {"gpu": "another"}, "comes from"),
    ],
)
def test_another_timing_cache_is_set_aside(tmp_path, spoil, machine, reason):
    store.write_timing_cache(tmp_path, b"timings", ADA)
    spoil(tmp_path)
    content, note = store.read_timing_cache(tmp_path, dataclasses.replace(ADA, **machine))
    assert content == b""
    assert reason in note
    assert (tmp_path / "timing.cache.aside").exists()
    assert store.read_timing_cache(tmp_path, ADA) == (b"", "")


def test_versions_and_backend_names():
    assert version_numbers("10.12.0.36") == (10, 12, 0, 36)
    assert version_numbers("11.4.0rc1") == (11, 4)
    with pytest.raises(R2GenError) as caught:
        load_backend("cuda")
    assert caught.value.code == "R2G-CONFIG-VALUE"


def test_what_the_runtime_asks_needs_neither_tensorrt_nor_onnx():
    program = (
        "import sys\n"
        "for name in ('onnx', 'tensorrt', 'tensorrt_bindings', 'tensorrt_rtx', 'tensorrt_rtx_bindings', 'numpy'):\n"
        "    sys.modules[name] = None\n"
        "import trt_engines.store, trt_engines.builder, trt_engines.progress\n"
        "from trt_engines.backends import load_backend\n"
        "try:\n    load_backend('tensorrt-rtx')\n"
        "except Exception as error:\n    print(error.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "R2G-ENGINE-BACKEND\n"
