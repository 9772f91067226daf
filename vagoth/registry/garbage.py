"""Python's search for garbage, kept away from records, of which there may be very many.

Records make no cycles. Yet looking for some among a hundred thousand of them takes a fifth of a
second, in which the event loop does nothing else.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Fewer records than this are searched in no time.
FEW = 2000

_guard = threading.Lock()
_resting = 0


@contextmanager
def no_garbage() -> Iterator[None]:
    """Hold off the search for cycles, which records have not.

    Looking for them takes three times as long as reading the records.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def rest(count: int) -> bool:
    """Leave what there is now out of the search, if it is that many records: until :func:`wake`.

    What else is there now is left out too, and comes back with it. A program that has frozen
    objects itself is left alone.

    :return: whether :func:`wake` must be called
    """
    global _resting
    with _guard:
        if count < FEW or (not _resting and gc.get_freeze_count()):
            return False
        _resting += 1
        gc.freeze()
        return True


def wake() -> None:
    """Undo one :func:`rest`."""
    global _resting
    with _guard:
        _resting -= 1
        if not _resting:
            gc.unfreeze()
