"""A report as an iterator over its pieces of text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from r2gen_export.errors import R2GenError
from r2gen_export.reporting.report import Report, closing


class ReportStream:
    """Iterator over a report's pieces of text. Closing it (or leaving a `with` block) stops the generation.

    The last piece is the notice, behind the warnings where there are any: whoever shows all pieces shows it too. It
    also ends the pieces of a generation that failed after the first of them, before the error is raised.

    Args:
        pieces: generates the report; returns it.
        notice: research use only, of the bundle.
        run: makes the calls, for a GPU in its own thread.
    """

    def __init__(
        self, pieces: Generator[str, None, Report], notice: str, run: Callable[[Callable[[], str | None]], str | None]
    ) -> None:
        self._pieces, self._notice, self._run = pieces, notice, run
        self._begun = self._ended = False
        self._report: Report | None = None
        self._error: Exception | None = None

    @property
    def report(self) -> Report:
        """The whole report, once the iterator has ended.

        Raises:
            R2GenError: `R2G-CONFIG-VALUE` when it has not.
        """
        if self._report is None:
            raise R2GenError("R2G-CONFIG-VALUE", "the stream has not ended", "take all its pieces first")
        return self._report

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._ended:
            raise StopIteration
        piece = self._run(self._next)
        if piece is not None:
            self._begun = True
            return piece
        self._ended = True
        if self._error is not None and not self._begun:
            return next(self)
        return closing(self._report.warnings if self._report else (), self._notice) + "\n"

    def _next(self) -> str | None:
        """The next piece, None behind the last one and behind an error."""
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._report = end.value
        except Exception as error:
            self._error = error
        return None

    def close(self) -> None:
        """Stop the generation where it is."""
        self._ended, self._error = True, None
        self._run(self._pieces.close)

    def __enter__(self) -> ReportStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
