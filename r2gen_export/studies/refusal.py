"""What readers of a user's file raise: of one image format, without a subject; of any file, about one and nameless."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from r2gen_export.errors import CodedError, InternalError, R2GenError, cause_of, errno_text

AGAIN: Final = "copy it again from its source"
EXPORT: Final = "export it as uncompressed TIFF or as PNG, of 8 or 16 bits"


@contextmanager
def reading(subject: str) -> Iterator[None]:
    """Make coded errors about `subject` of what reading it raises, without the file's name.

    Raises:
        R2GenError: `R2G-RESOURCE-MEMORY`; coded errors as they are.
        InternalError: for anything else, whose own text may hold the path.
    """
    try:
        yield
    except MemoryError as error:
        message = f"{subject} does not fit into memory"
        raise R2GenError("R2G-RESOURCE-MEMORY", message, "close other programs") from error
    except CodedError:
        raise
    except Exception as error:
        raise InternalError(f"{cause_of(error)} while reading {subject}") from error


def reason_of(error: OSError | ValueError) -> str:
    """Why a file cannot be read, without its name; ValueError: what was given is no path."""
    return errno_text(error) or ("the system does not say why" if isinstance(error, OSError) else "no path")


class RefusedError(Exception):
    """An image that is not read. `what` continues a sentence that begins with the image: "is empty"."""

    def __init__(self, code: str, what: str, fix: str) -> None:
        super().__init__(code, what, fix)
        self.code, self.what, self.fix = code, what, fix


def damaged(kind: str) -> RefusedError:
    """The header is that of an image, the pixels behind it cannot be decoded."""
    what = f"begins as {kind} but its pixels cannot be read: it is truncated or damaged"
    return RefusedError("R2G-IMAGE-TRUNCATED", what, AGAIN)


def not_read(what: str, fix: str = EXPORT) -> RefusedError:
    """A sound file of a kind that r2gen does not read."""
    return RefusedError("R2G-IMAGE-FORMAT", what, fix)


def too_large(what: str, fix: str) -> RefusedError:
    """More than is decoded, seen in the header."""
    return RefusedError("R2G-IMAGE-SIZE", what, fix)
