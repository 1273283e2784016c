"""What each part may import. Asserted on `sys.modules` of a fresh process, and by blocking what must not be needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "optimum", "onnx", "onnxruntime", "tensorrt", "numpy", "tokenizers", "PIL", "rich")


def _loaded(*arguments: str) -> set[str]:
    """Top-level modules in memory when `r2gen ARGUMENTS` ends."""
    program = (
        "import json, sys\n"
        f"sys.argv = {['r2gen', *arguments]!r}\n"
        "import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "sys.stderr.write(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(child.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("infer", "--help"), ("train", "--help"), ("bench", "--help")]
)
def test_help_loads_nothing_heavy(arguments):
    assert _loaded(*arguments).isdisjoint(HEAVY)


@pytest.mark.parametrize(("arguments", "commands"), [(["--help"], set()), (["infer", "--help"], {"infer"})])
def test_a_command_is_imported_when_it_is_called(arguments: list[str], commands: set[str]) -> None:
    program = (
        "import json, sys\n"
        f"sys.argv = {['r2gen', *arguments]!r}\n"
        "import cli\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "names = {entry.name for entries in cli.Commands.sections.values() for entry in entries}\n"
        "print(json.dumps([name for name in names if f'r2gen_export.commands.{name}' in sys.modules]))\n"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(json.loads(child.stdout.splitlines()[-1])) == commands


def test_the_public_api_is_imported_when_it_is_asked_for() -> None:
    program = (
        "import json, sys, r2gen_export\n"
        "before = sorted(sys.modules)\n"
        "from r2gen_export import Evaluation, ExportSettings, Outcome, Pipeline, R2GenError, Report, demo_bundle\n"
        "from r2gen_export import evaluate, label_report\n"
        "assert callable(evaluate) and label_report('Mild cardiomegaly.')['Cardiomegaly'] == 'positive'\n"
        "assert set(r2gen_export.PUBLIC) == set(r2gen_export.__all__)\n"
        "from r2gen_export.runtime.pipeline import Pipeline as where_it_always_was\n"
        "assert Pipeline is where_it_always_was and set(r2gen_export.__all__) <= set(dir(r2gen_export))\n"
        "assert r2gen_export.__version__ == __import__('importlib.metadata').metadata.version('r2gen')\n"
        "print(json.dumps(before))\n"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    before = set(json.loads(child.stdout))
    assert before.isdisjoint(
        {*HEAVY, "typing_extensions", "dataclasses", "r2gen_export.runtime", "r2gen_export.bundle"}
    )


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import r2gen_export

    with pytest.raises(AttributeError, match="Pipelines"):
        _ = r2gen_export.Pipelines


def test_an_upward_import_breaks_the_contract(tmp_path: Path) -> None:
    """`.ci/run` runs import-linter on the tree as it is; here on a copy with an import that points up."""
    for name in ("r2gen_export", "trt_engines", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.onnx", "*.data", "*.npy"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    upward = tmp_path / "r2gen_export/studies/pixels.py"
    upward.write_text(upward.read_text() + "\n\ndef late() -> None:\n    import r2gen_export.runtime.pipeline\n")
    lint = str(Path(sys.executable).with_name("lint-imports"))
    where = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(tmp_path)}}
    child = subprocess.run([lint, "--no-cache"], capture_output=True, text=True, check=False, **where)
    assert child.returncode == 1
    assert "r2gen_export.studies.pixels -> r2gen_export.runtime.pipeline" in " ".join(child.stdout.split())
