"""Scorers in other environments: a command that reads JSON lines and writes JSON lines.

The command gets `{"id", "reference", "hypothesis"}` a line on stdin, with ids that are numbers of studies, and writes
`{"id", "scores": {NAME: NUMBER}}` for each, in any order, then `{"corpus": {NAME: NUMBER}, "about": {...}}`. `about`
says package, version and the weights' SHA-256. See EVALUATE.md.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.errors import R2GenError

SECONDS: Final = 3600.0


@dataclass(frozen=True)
class ScorerResult:
    """What a scorer answered: scores per study [N] by name, of the set by name, and what it is."""

    name: str
    studies: dict[str, NDArray[np.float64]]
    corpus: dict[str, float]
    about: dict[str, Any]


@dataclass(frozen=True)
class Scorer:
    """`NAME=COMMAND` of the command line."""

    name: str
    command: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Scorer:
        """Read `NAME=COMMAND`.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE`.
        """
        name, _, command = text.partition("=")
        try:
            words = tuple(shlex.split(command))
        except ValueError:
            words = ()
        if not name.strip() or not words:
            fix = '--scorer "radeval=python radeval_scores.py"'
            raise R2GenError("R2G-CONFIG-VALUE", "a scorer is given as NAME=COMMAND", fix)
        return cls(name.strip(), words)

    def score(self, texts: Sequence[str], references: Sequence[str], *, seconds: float = SECONDS) -> ScorerResult:
        """Run the command on pairs of texts.

        Raises:
            R2GenError: `R2G-EVAL-SCORER` when it fails, takes longer than `seconds`, leaves out, repeats or invents a
                study, or gives a score that is no finite number.
        """
        pairs = zip(references, texts, strict=True)
        lines = [
            json.dumps({"id": str(number), "reference": reference, "hypothesis": text})
            for number, (reference, text) in enumerate(pairs, start=1)
        ]
        return self._read(self._run("\n".join(lines) + "\n", seconds), len(texts))

    def _run(self, stdin: str, seconds: float) -> str:
        environment = {**os.environ, "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1")}
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                encoding="utf-8",
                start_new_session=os.name == "posix",  # so that its children end with it
            )
        except OSError as error:
            raise self._failed("its command cannot be started") from error
        try:
            output, _ = process.communicate(stdin, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            raise self._failed(f"it took longer than {seconds:g} s") from error
        except ValueError as error:
            raise self._failed("its output is not UTF-8") from error
        finally:
            _end(process)
        if process.returncode:
            raise self._failed(f"its command ended with status {process.returncode}")
        return output

    def _read(self, output: str, studies: int) -> ScorerResult:
        scores: dict[int, dict[str, float]] = {}
        last: dict[str, Any] = {}
        for number, line in enumerate(output.splitlines(), start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise self._failed(f"line {number} of its output is not JSON") from error
            if not isinstance(fields, dict) or last:
                raise self._failed(f"line {number} of its output is no object, or follows the last one")
            if "corpus" in fields:
                last = fields
                continue
            study = self._study(fields.get("id"), number, studies)
            if study in scores:
                raise self._failed(f"study {study} is there twice")
            scores[study] = self._numbers(fields.get("scores"), f"study {study}")
        if missing := studies - len(scores):
            raise self._failed(f"{missing} of {studies} studies have no score")
        names = {tuple(sorted(values)) for values in scores.values()}
        if len(names) > 1:
            raise self._failed("studies have scores of different names")
        if not last or not isinstance(last.get("about"), dict):
            raise self._failed("it ended without a last line with corpus and about")
        try:
            json.dumps(last["about"], allow_nan=False)
        except ValueError as error:
            raise self._failed("what it says of itself holds a number that is not finite") from error
        per_study = {
            name: np.array([scores[study][name] for study in range(1, studies + 1)])
            for name in (names.pop() if names else ())
        }
        return ScorerResult(self.name, per_study, self._numbers(last["corpus"], "the corpus"), last["about"])

    def _study(self, identity: Any, line: int, studies: int) -> int:
        if isinstance(identity, str) and identity.isdecimal() and 1 <= int(identity) <= studies:
            return int(identity)
        raise self._failed(f"line {line} of its output has an id that was not given")

    def _numbers(self, values: Any, subject: str) -> dict[str, float]:
        if not isinstance(values, dict):
            raise self._failed(f"{subject} has no object of scores")
        for value in values.values():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise self._failed(f"{subject} has a score that is no finite number")
        return {str(name): float(value) for name, value in values.items()}

    def _failed(self, what: str) -> R2GenError:
        return R2GenError(
            "R2G-EVAL-SCORER", f"scorer {self.name}: {what}", "run its command by itself; see EVALUATE.md"
        )


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
