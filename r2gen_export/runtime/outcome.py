"""What became of one study of many."""

from __future__ import annotations

from dataclasses import dataclass

from r2gen_export.errors import CodedError, InternalError, R2GenError, cause_of
from r2gen_export.reporting.report import Report


@dataclass(frozen=True)
class Outcome:
    """What became of one study of many: exactly one of `report` and `error` is set. `study` counts from 1.

    The error's message begins with the study's number, and with the view's where it is about one.
    """

    study: int
    report: Report | None = None
    error: CodedError | None = None

    def unwrap(self) -> Report:
        """The report; raises the study's error when there is none."""
        if self.error is not None:
            raise self.error
        assert self.report is not None
        return self.report


def coded(error: Exception) -> CodedError:
    """The coded error for whatever a study's report failed with."""
    if isinstance(error, CodedError):
        return error
    if isinstance(error, MemoryError):
        fix = "close other programs, or a smaller --batch-size"
        return R2GenError("R2G-RESOURCE-MEMORY", "there is not enough memory for this study", fix)
    wrapped = InternalError(f"{cause_of(error)} while reporting a study")
    wrapped.__cause__ = error
    return wrapped
