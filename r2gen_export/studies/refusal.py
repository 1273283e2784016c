"""What the readers of one image format raise; `images` gives it the subject and makes it an `R2GenError`."""

from __future__ import annotations

from typing import Final

AGAIN: Final = "copy it again from its source"
EXPORT: Final = "export it as uncompressed TIFF or as PNG, of 8 or 16 bits"


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
