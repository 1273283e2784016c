"""Studies whose folder, files, list, annotation and reports bear a name, and ways in which reading them fails."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from cli import app

NAME = "ZZYZX^JANE"
ROOT = Path(__file__).parents[2]
PHANTOM = ROOT / "tests/data/phantom.png"

FAULTS: dict[str, Callable[[Path], BaseException]] = {
    "stale handle": lambda path: OSError(errno.ESTALE, "Stale file handle", str(path)),
    "stale handle without a number": lambda path: OSError(f"Stale file handle: '{path}'"),
    "text in place of the reason": lambda path: OSError(errno.EIO, f"cannot read '{path}'"),
    "input/output error": lambda path: OSError(errno.EIO, "Input/output error", str(path)),
    "permission": lambda path: PermissionError(errno.EACCES, "Permission denied", str(path)),
    "out of memory": lambda path: MemoryError(f"reading {path}"),
    "Ctrl-C": lambda path: KeyboardInterrupt(str(path)),
    "bug": lambda path: RuntimeError(f"unexpected: {path}"),
    "bug with a value": lambda path: ValueError(f"unexpected: {path}"),
}
"""What reading a file raises."""


@dataclass(frozen=True)
class Site:
    """Two studies under the sentinel's name, the second of which is `victim`."""

    folder: Path

    @property
    def images(self) -> list[Path]:
        return [self.folder / f"images/{NAME}-{number}.png" for number in (1, 2)]

    @property
    def victim(self) -> Path:
        return self.images[1]

    @property
    def list(self) -> Path:
        return self.folder / f"{NAME}.txt"

    @property
    def annotation(self) -> Path:
        return self.folder / f"{NAME}.json"

    def sources(self) -> list[list[Any]]:
        """Arguments of `infer` that name both images."""
        return [self.images, ["--study", *self.images], [self.folder / "images"], [self.list], [self.annotation]]


def make_site(folder: Path) -> Site:
    """Write the site below a folder."""
    made = Site(folder / f"ward-{NAME}")
    made.victim.parent.mkdir(parents=True)
    for image in made.images:
        shutil.copy(PHANTOM, image)
    made.list.write_text("".join(f"'images/{image.name}'\n" for image in made.images))
    paths = [image.name for image in made.images]
    studies = [{"id": f"{NAME}-{at}", "report": f"{NAME} is well .", "image_path": [paths[at % 2]]} for at in range(2)]
    made.annotation.write_text(json.dumps({"train": studies, "val": studies[:1]}))
    return made


@contextmanager
def failing(fault: Callable[[Path], BaseException], *suffixes: str) -> Iterator[list[Path]]:
    """Inside the block, opening the second image, or a file of these suffixes, raises the fault; yields what did."""
    before = Path.open
    hit: list[Path] = []

    def opened(self: Path, *arguments: Any, **options: Any) -> Any:
        if NAME in str(self) and (self.suffix in suffixes if suffixes else self.name.endswith("-2.png")):
            hit.append(self)
            raise fault(self)
        return before(self, *arguments, **options)

    Path.open = opened  # type: ignore[method-assign, assignment]
    try:
        yield hit
    finally:
        Path.open = before  # type: ignore[method-assign]


def run(*arguments: object) -> tuple[int, str]:
    """The exit status and all output of a command in this process."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout + done.stderr


def assert_nameless(*texts: str) -> None:
    for text in texts:
        assert NAME.partition("^")[0].lower() not in text.lower(), text
        assert "Traceback" not in text, text


def written(folder: Path) -> str:
    """Names and contents of all files below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return "\n".join(f"{path.relative_to(folder)}\n{path.read_bytes().decode('latin-1')}" for path in files)
