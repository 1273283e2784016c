"""Real builds with TensorRT-RTX, which needs no GPU for them: the demo, the `trt` dialect, and what goes wrong."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from r2gen_export.bundle import demo_bundle, load_manifest, seal
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.decoder.export import write_decoder
from r2gen_export.system.gpu import gpu
from tests.command import CLI, interrupted, run_here
from tests.conftest import TinySources
from tests.marks import slow
from tests.trt_engines.graphs import CAPABILITY, needs_rtx
from trt_engines.build import BuildSettings, Built, build_engines
from trt_engines.identity import LAYERS, PLAN, read_identity, verify_plan
from trt_engines.prepare import Limits
from trt_engines.store import list_engines

pytestmark = needs_rtx

BUILD = ("--backend", "tensorrt-rtx", "--compute-capability", CAPABILITY)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_bundle(), tmp_path / "demo"))


def build(bundle: Path, **settings: object) -> list[Built]:
    return list(build_engines(bundle, BuildSettings("tensorrt-rtx", capabilities=(CAPABILITY,), **settings)))  # type: ignore[arg-type]


def with_decoder(bundle: Path, out: Path, sources: TinySources, dialect: str, precision: str) -> Path:
    """A copy of a bundle whose decoder is written anew from its LLM."""
    shutil.copytree(bundle, out)
    manifest = load_manifest(out)
    (out / "decoder/model.onnx").unlink()
    model = LlamaForCausalLM.from_pretrained(sources.llm)
    write_decoder(model, out / "decoder", dialect=dialect, precision=precision)
    seal(out, replace(manifest, dialect=dialect, precision={**manifest.precision, "decoder": precision}))
    return out


@pytest.mark.parametrize("precision", ["fp32", "int4-f16", *slow(["fp16", "int8", "int4", "int8-f16", "int4-128-f16"])])
def test_the_trt_dialect_builds(tiny_bundle: Path, tiny_sources: TinySources, tmp_path: Path, precision: str) -> None:
    """As it is, by default: int4 stays int4, all else becomes fp16; and in fp32, without the fused attention."""
    bundle = with_decoder(tiny_bundle, tmp_path / "bundle", tiny_sources, "trt", precision)
    (built,) = build(bundle, parts=("decoder",), weight_streaming=True)
    assert built.identity.precision == ("int4" if precision.startswith("int4") else "fp16")
    assert built.identity.flags == ("WEIGHT_STREAMING",)
    types = [layer["type"] for layer in json.loads((built.folder / LAYERS).read_text())]
    assert types.count("KV_CACHE_UPDATE") == 4, "the cache is not written in place"
    assert types.count("DEQUANTIZE") == (15 if precision.startswith("int4") else 0)
    (single,) = build(bundle, parts=("decoder",), precision="fp32")
    assert single.identity.precision == "fp32"


def test_the_ort_dialect_is_refused_by_name(tiny_bundle: Path, tiny_sources: TinySources, tmp_path: Path) -> None:
    bundle = with_decoder(tiny_bundle, tmp_path / "bundle", tiny_sources, "ort", "int4")
    with pytest.raises(R2GenError) as caught:
        build(bundle)
    assert caught.value.code == "R2G-ENGINE-GRAPH"
    assert "GroupQueryAttention" in caught.value.message and "--dialect trt" in caught.value.fix
    (built,) = build(bundle, parts=("vision",))
    assert built.identity.precision == "fp16"


@pytest.mark.parametrize(
    ("settings", "found", "mend"),
    [
        ({"precision": "int8"}, "int8", "--precision fp32|fp16|int4"),
        ({"capabilities": ("9.0",)}, "9.0", "8.9"),
        ({"capabilities": ()}, "no GPU", "--compute-capability"),
        ({"limits": Limits(max_length=20)}, "20 positions", "--max-length between"),
        ({"limits": Limits(max_length=5000)}, "5000 positions", "--max-length between"),
    ],
)
def test_settings_that_cannot_be(bundle: Path, settings: dict[str, object], found: str, mend: str) -> None:
    if settings == {"capabilities": ()} and gpu() is not None:
        pytest.skip("there is a GPU to take the compute capability from")
    asked = {"capabilities": (CAPABILITY,), "parts": ("decoder",), **settings}
    with pytest.raises(R2GenError, match=found) as caught:
        list(build_engines(bundle, BuildSettings("tensorrt-rtx", **asked)))  # type: ignore[arg-type]
    assert caught.value.code == "R2G-CONFIG-VALUE"
    assert mend in caught.value.fix
    assert list_engines(bundle) == []


def test_what_is_there_is_kept_and_what_is_spoilt_built_again(bundle: Path) -> None:
    def vision(**more: object) -> Built:
        (built,) = build(bundle, parts=("vision",), **more)
        return built

    first = vision()
    assert not first.reused
    again = vision()
    assert again.reused and again.identity == first.identity
    assert not vision(limits=Limits(max_views=2)).reused
    assert not vision().reused
    (first.folder / PLAN).write_bytes(b"tampered")
    (first.folder.parent / "timing.cache").write_bytes(b"torn")
    mended = vision()
    assert not mended.reused
    verify_plan(mended.folder, mended.identity)
    assert mended.notes == ("the timing cache was set aside: it is not as it was written",)
    assert (first.folder.parent / "timing.cache.aside").read_bytes() == b"torn"


def test_builds_of_one_target_do_not_disturb_each_other(bundle: Path) -> None:
    command = [*CLI, "build", str(bundle), *BUILD, "--parts", "vision"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("there already" in one for one in said) == 1, "the second builds what the first has built"
    (engine,) = list_engines(bundle)
    verify_plan(engine.folder, read_identity(engine.folder))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_half_engine(bundle: Path, how: signal.Signals) -> None:
    arguments = ["build", bundle, *BUILD, "--parts", "vision"]
    status, errors = interrupted(
        arguments, lambda: any(bundle.glob("engines/*/.graph-*/order.json")), how=how, delay=0.5
    )
    assert list_engines(bundle) == []
    if how is signal.SIGINT:
        assert status == 130, errors
        assert "interrupted" in errors and "Traceback" not in errors
        assert not list(bundle.glob("engines/*/*"))
    (target,) = (path for path in (bundle / "engines").iterdir() if path.is_dir())
    (target / ".vision.x.old/old").mkdir(parents=True)  # as a build leaves it that is killed while it swaps engines
    build(bundle, parts=("vision",))
    (engine,) = list_engines(bundle)
    verify_plan(engine.folder, read_identity(engine.folder))
    assert not list(bundle.glob("engines/*/.*")), "what the killed build left is still there"


def test_engines_are_listed_inspected_and_removed(bundle: Path) -> None:
    (built,) = build(bundle, parts=("vision",))
    target = built.folder.parent.name
    assert run_here("engines", "list", bundle).stdout.startswith(f"{target}/vision: fp16, compute capability 8.9, ")
    shown = json.loads(run_here("engines", "inspect", bundle, target, "--format", "json").stdout)
    assert shown["plan_sha256"] == built.identity.plan_sha256
    assert shown["command"].startswith(f"r2gen build {bundle} --backend tensorrt-rtx --parts vision")
    here = gpu()
    assert (shown["mismatches"] == []) == (here is not None and here.compute_capability == CAPABILITY)
    assert "vision.profiles" in run_here("engines", "inspect", bundle, target).stdout
    (built.folder / PLAN).write_bytes(b"tampered")
    spoilt = run_here("engines", "inspect", bundle, target)
    assert spoilt.returncode == 2 and "R2G-ENGINE-HASH" in spoilt.stderr
    assert run_here("engines", "remove", bundle, target).returncode == 0
    assert run_here("engines", "list", bundle).stdout == ""
    gone = run_here("engines", "remove", bundle, target)
    assert gone.returncode == 2 and "R2G-ENGINE-MISSING" in gone.stderr


def test_the_recipe_in_an_identity_builds_the_same_again(bundle: Path) -> None:
    import shlex

    (built,) = build(bundle, parts=("decoder",), precision="int4", limits=Limits(max_batch=2, max_length=320))
    recipe = shlex.split(built.identity.build_command(bundle))
    shutil.rmtree(bundle / "engines")
    done = subprocess.run([sys.executable, CLI[1], *recipe[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (engine,) = list_engines(bundle)
    again = read_identity(engine.folder)
    same = {
        "created": "",
        "build_s": 0.0,
        "peak_rss_bytes": 0,
        "plan_sha256": "",
        "plan_bytes": 0,
        "timing_cache_sha256": "",
    }
    assert replace(again, **same) == replace(built.identity, **same)
