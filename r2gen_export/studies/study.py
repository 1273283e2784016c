"""One study of a call, and the list of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from r2gen_export.errors import CodedError
from r2gen_export.studies.identity import Identity


@dataclass(frozen=True)
class Study:
    """The images of one study, in the order of its views.

    Attributes:
        name: what `--names` shows; may identify a patient: not for logs.
        images: the files that are read; at least one.
        identity: whom it belongs to, None without a DICOM file. Never printed, and not in `repr`.
        warnings: what a reader of its report should know about the study as a whole; they name no file.
        refusal: why no report is written for it, with a message without a subject; None when nothing is wrong.
    """

    name: str
    images: tuple[Path, ...]
    identity: Identity | None = field(default=None, repr=False)
    warnings: tuple[str, ...] = ()
    refusal: CodedError | None = None

    def readable_images(self, subject: str = "") -> tuple[Path, ...]:
        """`images`, where a report may be written.

        Args:
            subject: what the error calls the study ("study 3").

        Raises:
            R2GenError: the study's refusal, `R2G-DICOM-*`.
        """
        if self.refusal is not None:
            raise self.refusal.about(subject) if subject else self.refusal
        return self.images


@dataclass(frozen=True)
class StudyList:
    """The studies of one call.

    Attributes:
        studies: at least one.
        many: false for one image, or the views of one study, given by themselves.
        warnings: what may hold images and is passed over, a line each; names no file.
        remarks: what is passed over and holds none.
    """

    studies: tuple[Study, ...]
    many: bool
    warnings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
