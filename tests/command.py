"""`r2gen ARGUMENTS` for tests: in a process of its own, or in this one where only the answer counts."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from typer.testing import CliRunner

ROOT = Path(__file__).parent.parent
CLI = [sys.executable, str(ROOT / "cli.py")]
LEFT_OUT = ("R2GEN", "_TYPER", "COMP_")
"""Variables of the user's that would change what a command does."""


def run_cli(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """`r2gen ARGUMENTS` in a process of its own, without a terminal."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(LEFT_OUT)}
    return subprocess.run(
        [*CLI, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(ROOT), **variables},
    )


def run_here(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has its modules already: a second less, and several for a command with torch.

    What only a process of its own has (its start, streams, signals, `sys.argv`) needs `run_cli`.
    """
    import cli

    words = [str(word) for word in arguments]
    with patch.dict(os.environ, variables), contextlib.chdir(cwd or Path.cwd()):
        for name in [name for name in os.environ if name.startswith(LEFT_OUT) and name not in variables]:
            del os.environ[name]
        done = CliRunner().invoke(cli.app, words, prog_name="r2gen")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


def interrupted(
    arguments: list[object], begun: Callable[[], bool], *, how: signal.Signals = signal.SIGINT, delay: float = 0.0
) -> tuple[int, str]:
    """Start r2gen, send a signal `delay` s after `begun`, wait for its end. Returns exit status and stderr."""
    command = [*CLI, *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    deadline = time.monotonic() + 120
    while not begun():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(delay)
    process.send_signal(how)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def limited(arguments: list[object], limit: int) -> subprocess.CompletedProcess[str]:
    """r2gen in a process that can write no file beyond `limit` bytes."""
    return subprocess.run(
        [*CLI, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
