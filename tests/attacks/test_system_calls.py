"""No command uses a socket that nobody asked for, and none writes outside the folders it was given.

A library preloaded into every process of a command (`watch.c`) lists what is opened for writing, connected to and
looked up, by r2gen or by the native libraries it uses: ONNX Runtime and OpenVINO have telemetry of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from r2gen_export.bundle import demo_bundle
from tests.conftest import TinySources
from tests.helpers.tiny import make_annotation
from tests.trt_engines.graphs import needs_rtx

ROOT = Path(__file__).parents[2]
PHANTOM = ROOT / "tests/data/phantom.png"
REAL = ROOT / "tests/data/chest-dx-pa.png"
DEVICES = ("/dev/null", "/dev/shm/", "/dev/tty", "/proc/self/")

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("cc") is None, reason="needs Linux and a C compiler"
)


@dataclass(frozen=True)
class Watched:
    """What a command did: its end, its network calls, and the paths outside `DEVICES` that it opened for writing."""

    done: subprocess.CompletedProcess[str]
    network: list[str]
    written: list[Path]


Watch = Callable[..., Watched]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("watch") / "watch.so"
    source = Path(__file__).with_name("watch.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


@pytest.fixture
def watch(library: Path, tmp_path: Path) -> Watch:
    """Runs Python in a folder of its own, with HOME, TMPDIR and R2GEN_CACHE beside it."""
    for name in ("home", "tmp", "work"):
        (tmp_path / name).mkdir()

    def run(arguments: Sequence[object], **variables: str) -> Watched:
        calls = tmp_path / "calls"
        calls.unlink(missing_ok=True)
        passed_on = ("PATH", "LD_LIBRARY_PATH", "LANG", "VIRTUAL_ENV", "OMP_NUM_THREADS")
        environment = {name: os.environ[name] for name in passed_on if name in os.environ}
        environment |= {
            "HOME": str(tmp_path / "home"),
            "TMPDIR": str(tmp_path / "tmp"),
            "R2GEN_CACHE": str(tmp_path / "cache"),
            "R2GEN_TEST_CALLS": str(calls),
            "LD_PRELOAD": str(library),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": str(ROOT),
            **variables,
        }
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        lines = calls.read_text(errors="replace").splitlines() if calls.exists() else []
        written = {Path(os.path.normpath(line.removeprefix("write "))) for line in lines if line.startswith("write ")}
        network = [line for line in lines if not line.startswith(("write ", "connect AF_UNIX"))]
        return Watched(done, network, sorted(path for path in written if not str(path).startswith(DEVICES)))

    return run


def assert_quiet(watched: Watched, *folders: Path) -> None:
    """No network call, nothing written but below these folders and the temporary one, in which no file is left."""
    assert watched.done.returncode == 0, watched.done.stderr[-2000:]
    assert watched.network == []
    base = next(path for path in folders[0].parents if (path / "tmp").is_dir())
    allowed = [*folders, base / "tmp", base / "cache"]
    outside = [path for path in watched.written if not any(path.is_relative_to(folder) for folder in allowed)]
    assert outside == []
    assert [path for path in (base / "tmp").rglob("*") if not path.is_dir()] == []
    assert list((base / "home").iterdir()) == []


def test_the_watch_sees_what_libraries_do_unless_told_not_to(watch: Watch, tmp_path: Path) -> None:
    """The other tests can fail: ONNX Runtime writes a device id, OpenVINO an own one, and looks a host up."""
    seen = watch(["-c", "import socket, onnxruntime; socket.gethostbyname; socket.getaddrinfo('localhost', 80)"])
    assert seen.done.returncode == 0
    assert "lookup localhost" in seen.network
    if any(tmp_path.glob("home/.cache/Microsoft/**/deviceid")):
        assert any("Microsoft" in path.parts for path in seen.written)
    quiet = watch(["-c", "import r2gen_export, onnxruntime"], HOME=str(tmp_path / "tmp"))
    assert (quiet.network, quiet.written) == ([], [])
    pytest.importorskip("openvino_telemetry")
    loud = watch(["-c", "import openvino"])
    assert any(path.parts[-2:] == ("intel", "stats") for path in loud.written)


CLI = ROOT / "cli.py"


@pytest.mark.parametrize(
    "command",
    [
        ["infer", PHANTOM],
        ["infer", PHANTOM, REAL, "--format", "json", "--out", "reports.jsonl"],
        ["doctor"],
        ["phantom", "--out", "phantoms", "--studies", "3"],
        ["bench", "--runs", "1", "--warmup", "1", "--max-new-tokens", "2", "--out", "latency"],
        ["verify", demo_bundle()],
    ],
    ids=lambda command: " ".join(map(str, command[:1])),
)
def test_commands_of_the_base_install(watch: Watch, tmp_path: Path, command: list[object]) -> None:
    assert_quiet(watch([CLI, *command]), tmp_path / "work")


def test_drafts_and_engines(watch: Watch, tmp_path: Path) -> None:
    bundle = tmp_path / "work/bundle"
    shutil.copytree(demo_bundle(), bundle)
    (tmp_path / "work/reports.txt").write_text("The heart is enlarged.\nThe lungs are clear.\n")
    for command in (["drafts", "build", bundle, "--reports", "reports.txt"], ["drafts", "show", bundle],
                    ["infer", PHANTOM, "--bundle", bundle], ["drafts", "wipe", bundle],
                    ["engines", "list", bundle]):  # fmt: skip
        assert_quiet(watch([CLI, *command]), bundle)


SEVERAL = """
import json, sys
sys.path.insert(0, {root!r})
import cli
for command in json.loads({commands!r}):
    try:
        cli.app(command, standalone_mode=False)
    except BaseException as error:
        sys.exit(f"{{command}}: {{error!r}}")
"""


def test_commands_with_torch(watch: Watch, tmp_path: Path, tiny_sources: TinySources) -> None:
    """In one process, which imports torch once; and OpenVINO on the bundle that comes out."""
    annotation = make_annotation(tmp_path / "data")
    run, bundle = tmp_path / "work/run", tmp_path / "work/bundle"
    sources = ["--vision", tiny_sources.vision, "--llm", tiny_sources.llm]
    trained = ["--checkpoint", run / "best", *sources, "--parity-tokens", 2]
    commands = [
        ["train", "--annotation", annotation, "--base-dir", annotation.parent / "images", *sources, "--dataset",
         "iu_xray", "--out", run, "--epochs", 1, "--batch-size", 8],
        ["inspect", run / "best"],
        ["export", *trained, "--out", bundle, "--for", "cpu"],
        ["verify", bundle, *trained],
    ]  # fmt: skip
    program = SEVERAL.format(root=str(ROOT), commands=json.dumps([[str(word) for word in one] for one in commands]))
    assert_quiet(watch(["-c", program]), tmp_path / "work")
    pytest.importorskip("openvino")
    watched = watch([CLI, "infer", PHANTOM, "--bundle", bundle, "--device", "openvino", "--format", "json"])
    assert json.loads(watched.done.stdout)["execution_provider"].startswith("OpenVINO")
    assert_quiet(watched, tmp_path / "work")


@needs_rtx
def test_build(watch: Watch, tmp_path: Path) -> None:
    bundle = tmp_path / "work/bundle"
    shutil.copytree(demo_bundle(), bundle)
    command = ["build", bundle, "--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--parts", "vision"]
    assert_quiet(watch([CLI, *command]), bundle)


def test_a_user_who_imports_onnx_runtime_first_is_told() -> None:
    program = "import onnxruntime, warnings; warnings.simplefilter('error'); import r2gen_export"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert "import r2gen_export first, or set ORT_DISABLE_TELEMETRY=1" in done.stderr
    environment["ORT_DISABLE_TELEMETRY"] = "0"  # the user's own choice
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
