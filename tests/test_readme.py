"""The README's command blocks do what the README says, in order, in a fresh folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from r2gen_export.bundle import NOTICE

pytestmark = pytest.mark.quiet  # `r2gen bench compare` gives no verdict on a busy machine

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"(?:<!-- command: (?P<name>[\w-]+) -->\n)?```(?P<language>sh|python)\n(?P<commands>.*?)```", re.DOTALL
)
LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist")


@dataclass(frozen=True)
class Block:
    name: str | None
    language: str
    commands: str


BLOCKS = [Block(match["name"], match["language"], match["commands"]) for match in BLOCK.finditer(README)]
TOUR = [block for block in BLOCKS if block.name and block.name.startswith("tour-")]


def says_notice(out: str) -> bool:
    """The notice is wrapped in text and whole in JSON."""
    return NOTICE in " ".join(out.replace("\n| ", " ").split())


def shell(commands: str, folder: Path, scripts: Path | None = None) -> str:
    """Run a block as a user would; its stdout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("R2GEN_", "VIRTUAL_ENV"))}
    if scripts:
        environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_every_block_is_executed_by_somebody() -> None:
    names = [block.name for block in BLOCKS]
    assert None not in names, "a block without '<!-- command: NAME -->' is executed by nobody"
    assert sorted(set(names)) == sorted(names)
    assert {"run", "tests"} <= set(names)
    assert set(names) - {"run", "tests"} == {block.name for block in TOUR}


def test_ci_runs_the_tests_block() -> None:
    """What .ci/run reads from the README, before it runs it, is the block."""
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    (reading,) = re.findall(r"^tests=.*$", ci, re.MULTILINE)
    (block,) = (block for block in BLOCKS if block.name == "tests")
    assert shell(f'{reading}\necho "$tests"', ROOT) == block.commands
    assert re.search(r'^bash .*-c "\$tests"$', ci, re.MULTILINE)


def test_run_block_installs_and_reports_without_torch(tmp_path: Path) -> None:
    """A copy of the tree without its dotfiles, a new virtual environment, the README's command."""
    copy = tmp_path / "r2gen"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    (block,) = (block for block in BLOCKS if block.name == "run")
    out = shell(block.commands, copy)
    assert says_notice(out)
    assert len(out.partition("Research use only")[0].split()) > 10, "the draft report stands before the notice"
    packages = shell(".venv/bin/pip list --format=freeze", copy).lower()
    assert "r2gen==" in packages
    assert "onnxruntime" in packages
    assert not re.search(r"^(torch|transformers|optimum|lightning|peft)\b", packages, re.MULTILINE)


@pytest.fixture(scope="module")
def tour_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tour")
    shutil.copytree(ROOT / "tests/data", folder / "tests/data")
    return folder


@pytest.mark.parametrize("block", TOUR, ids=lambda block: block.name)
def test_tour(block: Block, tour_folder: Path) -> None:
    """The tour's blocks build on each other; pytest runs them in the README's order."""
    scripts = Path(sys.executable).parent
    assert (scripts / "r2gen").exists(), "install with: pip install -e '.[dev]'"
    commands = block.commands if block.language == "sh" else f"python - <<'END'\n{block.commands}END"
    out = shell(commands, tour_folder, scripts)
    if "r2gen infer" in commands or ".generate(" in commands:
        assert says_notice(out)
