"""METEOR 1.5 by its authors' jar, where Java and pycocoevalcap (which brings the jar) are installed.

No other metric is given under this name: nltk's `meteor_score`, for one, gives 0.41 where the jar gives 0.20.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.errors import R2GenError

SECONDS: Final = 3600.0
"""Time limit of one set. The jar takes about 25 ms a study once its tables are loaded."""


@dataclass(frozen=True)
class Meteor:
    """`corpus`: the jar's score of the set, which is not the mean of `studies` [N]."""

    corpus: float
    studies: NDArray[np.float64]


def why_no_meteor() -> str:
    """Why METEOR 1.5 cannot be computed here; empty when it can."""
    if shutil.which("java") is None:
        return "Java is not installed"
    return "" if _jar() else "the package pycocoevalcap, which brings meteor-1.5.jar, is not installed"


def _jar() -> Path | None:
    spec = find_spec("pycocoevalcap")
    places = spec.submodule_search_locations if spec else None
    jars = [Path(place) / "meteor" / "meteor-1.5.jar" for place in places or ()]
    return next((jar for jar in jars if jar.is_file()), None)


def meteor(texts: Sequence[str], references: Sequence[str], *, seconds: float = SECONDS) -> Meteor:
    """Score pairs with the jar.

    White space is collapsed and `|||` removed first, as the published code does: a line break in a text would shift all
    answers behind it by a line.

    Raises:
        R2GenError: `R2G-DEPENDENCY-MISSING`, `R2G-EVAL-SCORER` when the jar fails or takes too long.
    """
    jar = _jar()
    if (reason := why_no_meteor()) or jar is None:
        raise R2GenError("R2G-DEPENDENCY-MISSING", f"METEOR 1.5: {reason}", "install Java and pycocoevalcap==1.2")
    with _process(jar, seconds) as (send, receive):
        stats = []
        for text, reference in zip(texts, references, strict=True):
            send(f"SCORE ||| {_line(reference)} ||| {_line(text)}")
            stats.append(receive())
        send("EVAL ||| " + " ||| ".join(stats))
        try:
            studies = np.array([float(receive()) for _ in stats], dtype=np.float64)
            return Meteor(float(receive()), studies)
        except ValueError as error:
            raise _failed("the jar's answer is not a number") from error


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("|||", "")).strip()


@contextmanager
def _process(jar: Path, seconds: float) -> Iterator[tuple[_Send, _Receive]]:
    command = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    process = subprocess.Popen(
        command,
        cwd=jar.parent,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )
    late = threading.Timer(seconds, process.kill)
    late.start()
    assert process.stdin is not None and process.stdout is not None
    try:
        yield _Send(process.stdin), _Receive(process.stdout)
    except BrokenPipeError as error:
        raise _failed("the jar ended before its work was done") from error
    finally:
        late.cancel()
        process.kill()
        process.wait()


@dataclass(frozen=True)
class _Send:
    stream: IO[str]

    def __call__(self, line: str) -> None:
        self.stream.write(line + "\n")
        self.stream.flush()


@dataclass(frozen=True)
class _Receive:
    stream: IO[str]

    def __call__(self) -> str:
        if not (line := self.stream.readline()):
            raise _failed("the jar ended before its work was done, or took too long")
        return line.strip()


def _failed(what: str) -> R2GenError:
    return R2GenError("R2G-EVAL-SCORER", f"METEOR 1.5: {what}", "look at the Java installation, or use --no-meteor")
