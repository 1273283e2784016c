"""pydicom without the checks of values whose warnings repeat the value."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LOCK: Final = threading.Lock()


@contextmanager
def unvalidated() -> Iterator[None]:
    """A block in which pydicom takes every value as it is.

    An archive must get back what it has, valid or not, and pydicom's warning about a value shows it on stderr and in
    the log, where nothing of a patient may stand. The setting is the process's, not the thread's: one block at a time,
    or the end of one would switch the checks on within another.
    """
    from pydicom.config import disable_value_validation

    with _LOCK, disable_value_validation():
        yield
