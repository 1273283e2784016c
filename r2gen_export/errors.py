"""The closed list of error codes, and the two roots every error of r2gen descends from.

`R2GenError`: the user can fix it (exit status 2; 3 where a gate was not passed, see `GATES`; 4 where some of many
studies have no report). `InternalError`: our own bug (exit status 1). A message says what failed, what was found, what
was expected and which command mends it, in one or two lines, and never carries a patient identifier.
"""

from __future__ import annotations

import os
from typing import Final, Self

CODES: Final[dict[str, str]] = {
    "R2G-BENCH-CONDITIONS": "conditions of two latency reports differ, or allow no verdict (busy, too few processes)",
    "R2G-BENCH-FORMAT": "a file is not a latency report this release reads",
    "R2G-BENCH-SLOWER": "a latency report is worse than its baseline by more than was allowed",
    "R2G-BUNDLE-MISSING": "the bundle folder or a file the manifest lists is not there",
    "R2G-BUNDLE-MANIFEST": "manifest.json is not readable, or a field is missing or has the wrong type",
    "R2G-BUNDLE-VERSION": "the bundle's format version is not one this release reads",
    "R2G-BUNDLE-HASH": "a file's size or SHA-256 differs from the manifest",
    "R2G-BUNDLE-PATH": "a file of the bundle points out of the bundle's folder",
    "R2G-BUNDLE-GRAPH": "a graph of the bundle cannot be loaded or has other inputs and outputs than the contract",
    "R2G-CHECKPOINT-MISSING": "the checkpoint is not there or lacks one of its files",
    "R2G-CHECKPOINT-FORMAT": "the checkpoint is not one r2gen reads",
    "R2G-CHECKPOINT-KEYS": "tensors of the checkpoint are missing, unexpected or mis-shaped",
    "R2G-CHECKPOINT-UNSAFE": "the checkpoint asks for objects that could run code when they are loaded",
    "R2G-CONFIG-VALUE": "a setting has a value outside its range, or two settings exclude each other",
    "R2G-DATA-ANNOTATION": "a list or an annotation.json is not readable or not of its form",
    "R2G-DATA-EMPTY": "there is no study to work on",
    "R2G-DEPENDENCY-MISSING": "an optional package that this command needs is not installed",
    "R2G-DEVICE-UNAVAILABLE": "the device asked for is not usable on this machine",
    "R2G-DICOM-FORMAT": "a file is not a DICOM file r2gen can parse",
    "R2G-DICOM-LIMIT": "a DICOM file or archive is too large, or reading it took too much time or memory",
    "R2G-DICOM-PIXELS": "a DICOM file has no pixels, or they are truncated, damaged or in an unsupported encoding",
    "R2G-DICOM-REFUSED": "a DICOM object is of a kind no report is written for (not a chest radiograph)",
    "R2G-DICOM-SOURCE": "a result for a PACS was asked for a study that did not come from DICOM files",
    "R2G-DICOM-STUDY": "files of several studies or patients were given as one study",
    "R2G-ENGINE-BACKEND": "neither TensorRT nor TensorRT-RTX is usable for what was asked",
    "R2G-ENGINE-BUILD": "the backend parsed the graph but built no engine from it",
    "R2G-ENGINE-GRAPH": "the bundle's graph is of a kind no engine is built from",
    "R2G-ENGINE-HASH": "an engine's plan is not the one its identity describes",
    "R2G-ENGINE-IDENTITY": "an engine's identity.json is not readable",
    "R2G-ENGINE-MISMATCH": "an engine was built for another machine, backend or bundle",
    "R2G-ENGINE-MISSING": "there is no such engine",
    "R2G-ENGINE-NODE": "a graph has nodes the backend is known not to take",
    "R2G-ENGINE-PARSE": "the backend's ONNX parser refuses the graph",
    "R2G-EVAL-FORMAT": "a file of predictions, references or results is not of a form r2gen evaluate reads",
    "R2G-EVAL-SCORER": "an external scorer failed, took too long or gave wrong results",
    "R2G-EVAL-STUDIES": "predictions and references are not of the same studies, or an id is there twice",
    "R2G-EVAL-WORSE": "a system was not shown to be as good as its reference within the margin",
    "R2G-GENERATE-EMPTY": "the model produced no text for this study",
    "R2G-GENERATE-NONFINITE": "the model's output contains NaN or infinity",
    "R2G-HTTP-BODY": "the body of a request is not of the form it says, or ended early",
    "R2G-HTTP-BUSY": "the queue is full, or a key has used its rate",
    "R2G-HTTP-KEY": "there is no key of this service in the request",
    "R2G-HTTP-LIMIT": "a request is larger than this service takes, or came too slowly",
    "R2G-HTTP-ORIGIN": "a page of another site sent the request, or it was sent to another name",
    "R2G-HTTP-PATH": "there is no such path, or no such method of it",
    "R2G-HTTP-READY": "the process that writes reports is not ready, or ended while it wrote",
    "R2G-HTTP-TIME": "the report was not done within its time",
    "R2G-IMAGE-MISSING": "an image file is not there",
    "R2G-IMAGE-FORMAT": "a file is not an image r2gen reads",
    "R2G-IMAGE-TRUNCATED": "an image file ends before its pixels do",
    "R2G-IMAGE-SIZE": "an image is larger than r2gen decodes, or has no pixels",
    "R2G-IMAGE-BLANK": "an image holds one single grey value",
    "R2G-MODEL-MISSING": "a source model (vision encoder, LLM or tokenizer) cannot be loaded",
    "R2G-MODEL-UNSUPPORTED": "a source model is of a kind r2gen does not export",
    "R2G-MODEL-NONFINITE": "weights contain NaN or infinity",
    "R2G-NODE-NETWORK": "the node cannot listen on its port, or its TLS files cannot be used",
    "R2G-NODE-SPOOL": "the node's spool folder is unusable, in use, or holds no such study",
    "R2G-OUTPUT-EXISTS": "the output is there already",
    "R2G-OUTPUT-WRITE": "the output cannot be written (disk full, no permission)",
    "R2G-PARITY-FAILED": "the exported model does not compute what the PyTorch model computes",
    "R2G-RESOURCE-DISK": "there is not enough disk space for what was asked",
    "R2G-RESOURCE-MEMORY": "there is not enough memory for what was asked",
    "R2G-STUDIES-FAILED": "some studies of the call could not be reported",
    "R2G-INTERNAL": "a bug in r2gen",
}
"""Every code r2gen can print, with its meaning."""

GATES: Final = frozenset({"R2G-PARITY-FAILED", "R2G-BENCH-SLOWER", "R2G-EVAL-WORSE"})
"""Codes with exit status 3: everything worked, and what came out is not what was asked for."""

SOME_FAILED: Final = "R2G-STUDIES-FAILED"
"""The code with exit status 4: the other studies have their reports."""


class CodedError(Exception):
    """Root of both families.

    Args:
        code: a key of `CODES`.
        message: what failed, found versus expected. One or two lines.
        fix: the command or action that mends it.

    Raises:
        KeyError: when `code` is not in the closed list (a bug caught by the tests).
    """

    exit_status: int = 1

    def __init__(self, code: str, message: str, fix: str = "") -> None:
        self.meaning = CODES[code]
        self.code = code
        self.message = message
        self.fix = fix
        super().__init__(self.render())

    def render(self) -> str:
        """The error as the command line prints it, without colour."""
        first = f"{self.code}: {self.message}"
        return f"{first}\n  fix: {self.fix}" if self.fix else first

    def with_message(self, message: str) -> Self:
        """The same error with another message."""
        return type(self)(self.code, message, self.fix)

    def about(self, subject: str) -> Self:
        """The same error with its subject in front, such as "study 3"."""
        return self.with_message(f"{subject}: {self.message}")

    def __reduce__(self) -> tuple[type[CodedError], tuple[str, str, str]]:
        return type(self), (self.code, self.message, self.fix)


class R2GenError(CodedError):
    """Something the user can fix."""

    exit_status = 2

    def __init__(self, code: str, message: str, fix: str = "") -> None:
        super().__init__(code, message, fix)
        if code in GATES:
            self.exit_status = 3
        elif code == SOME_FAILED:
            self.exit_status = 4


class InternalError(CodedError):
    """A bug in r2gen."""

    def __init__(self, message: str, fix: str = "report it with the command line and `r2gen doctor`'s output") -> None:
        super().__init__("R2G-INTERNAL", message, fix)

    def with_message(self, message: str) -> Self:
        """As `CodedError.with_message`."""
        return type(self)(message, self.fix)

    def __reduce__(self) -> tuple[type[CodedError], tuple[str, ...]]:  # type: ignore[override]
        return type(self), (self.message, self.fix)


def errno_text(error: BaseException) -> str:
    """What the system says of a failed call ("Stale file handle"), without the file's name; empty when it says nothing.

    By the number alone: `strerror` is whatever the code that raised the error wrote, which may be a path.
    """
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if isinstance(number, int) else ""


def cause_of(error: BaseException) -> str:
    """An exception of any kind for a message: its type and `errno_text`, never its own text, which may hold a path."""
    text = errno_text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def library_reason(error: BaseException, path: str | os.PathLike[str]) -> str:
    """Why a library cannot read a file, on one line: its own words, or `cause_of` where they may hold the path."""
    text = str(error).strip().partition("\n")[0][:160]
    return cause_of(error) if not text or isinstance(error, OSError) or os.fspath(path) in str(error) else text
