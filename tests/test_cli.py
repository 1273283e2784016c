"""The command line as a user meets it: help, completion, exit statuses, one study and many, terminals and pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLI = [sys.executable, str(ROOT / "cli.py")]
COMMANDS = ("infer", "bench", "doctor", "phantom", "demo", "train", "export", "verify", "inspect", "build")


def run_cli(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """`r2gen ARGUMENTS` in a process of its own, without a terminal."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("R2GEN", "_TYPER", "COMP_"))}
    return subprocess.run(
        [*CLI, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(ROOT), **variables},
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    shown = run_cli(command, "--help")
    assert shown.returncode == 0, shown.stderr
    assert f"r2gen {command} [OPTIONS]" in shown.stdout


def test_help_lists_the_commands():
    shown = run_cli("--help").stdout
    assert [name for name in COMMANDS if f"\n  {name} " not in shown] == []
    assert "not for diagnosis" in shown


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("r2gen infer --num", {"--num-beams"}),
        ("r2gen infer --preset fast --format ", {"text", "json"}),
        ("r2gen inf", {"infer"}),
    ],
)
def test_bash_completes(words, completions):
    count = len(words.split(" ")) - 1
    shown = run_cli(_R2GEN_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(count))
    assert shown.returncode == 0
    assert set(shown.stdout.split()) == completions


def test_completion_is_shown_for_bash():
    shown = run_cli("--show-completion", "bash")
    assert "_R2GEN_COMPLETE=complete_bash" in shown.stdout


def test_unknown_options_are_the_users(tmp_path):
    assert run_cli("infer", "x.png", "--no-such-option").returncode == 2
