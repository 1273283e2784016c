"""`r2gen ARGUMENTS` for tests: in a process of its own, or in this one where only the answer counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
CLI = [sys.executable, str(ROOT / "cli.py")]


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


def run_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported torch already: seconds less for a command with torch."""
    import cli

    words = [str(word) for word in arguments]
    done = CliRunner().invoke(cli.app, words, prog_name="r2gen")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)
