"""The pages of the repository and their code blocks, and how a test executes a block as a user would."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(
        page for package in ("benchmarks", "r2gen_export", "trt_engines") for page in (ROOT / package).rglob("*.md")
    ),
)

_BLOCK = re.compile(
    r"(?:<!-- (?P<kind>command|output|not executed): (?P<name>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)```",
    re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block. `kind`: "command", "output", "not executed", or empty without a marker; `name`: the marker's."""

    page: str
    kind: str
    name: str
    language: str
    text: str


def read_blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in its order."""
    relative = page.relative_to(ROOT).as_posix()
    return [
        Block(relative, match["kind"] or "", match["name"] or "", match["language"], match["text"])
        for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))
    ]


BLOCKS = [block for page in PAGES for block in read_blocks(page)]

COMMANDS = {block.name: block for block in BLOCKS if block.kind == "command"}


def shell(
    commands: str, folder: Path, *, scripts: Path | None = None, wrapper: tuple[str, ...] = (), **variables: str
) -> str:
    """Run a block as a user would and return its stdout.

    Args:
        commands: the text of the block.
        folder: working directory.
        scripts: folder that comes first on the PATH.
        wrapper: command that runs the shell, such as `unshare -rn`.
        variables: of the environment, beside this process's own.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("R2GEN_", "VIRTUAL_ENV"))}
    environment |= variables
    if scripts:
        environment["PATH"] = f"{scripts}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [*wrapper, "bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
