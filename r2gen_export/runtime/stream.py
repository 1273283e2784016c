"""A report as an iterator over its pieces of text, generated in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from r2gen_export.errors import R2GenError
from r2gen_export.reporting.report import Report, notice_block, warning_block


class ReportStream:
    """Iterator over a report's pieces of text. Closing it (or leaving a `with` block) stops the generation.

    The last piece is the notice, behind the warnings where there are any: whoever shows all pieces shows it too. It
    also ends the pieces of a generation that failed after the first of them, before the error is raised.

    Args:
        produce: writes the report; it calls its argument with each piece of the text.
        notice: research use only, of the bundle.
    """

    def __init__(self, produce: Callable[[Callable[[str], None]], Report], notice: str) -> None:
        self._notice = notice
        self._begun = False
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._report: Report | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, args=(produce,), daemon=True)
        self._thread.start()

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
        piece = None if self._closed else self._pieces.get()
        if piece is not None:
            return piece
        self._closed = True
        self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise StopIteration

    def close(self) -> None:
        """Stop the generation after its current step."""
        self._closed = True
        self._thread.join()

    def __enter__(self) -> ReportStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, produce: Callable[[Callable[[str], None]], Report]) -> None:
        try:
            report = produce(self._put)
            parts = [warning_block(report.warnings), notice_block(self._notice)]
            self._pieces.put("".join(f"\n\n{part}" for part in parts if part) + "\n")
            self._report = report
        except _ClosedError:
            pass
        except BaseException as error:
            self._error = error
            if self._begun:
                self._pieces.put(f"\n\n{notice_block(self._notice)}\n")
        finally:
            self._pieces.put(None)

    def _put(self, piece: str) -> None:
        if self._closed:
            raise _ClosedError
        self._begun = True
        self._pieces.put(piece)


class _ClosedError(Exception):
    """The consumer of a stream has gone."""
