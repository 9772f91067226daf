"""The transaction in force: the txid, source and reason that commits and log lines share.

It lives in a :class:`contextvars.ContextVar`, so it follows ``await`` and is inherited by
tasks. One opened inside another keeps the outer txid, so that a script's transaction covers
all that the verbs in it do; reasons gather as a trail, outermost first.
"""

from __future__ import annotations

import getpass
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from vagoth.model import new_txid


@dataclass(frozen=True)
class Transaction:
    """What a line of commits has in common. ``source`` says who: a user, a program."""

    id: str
    source: str
    reason: str


_current: ContextVar[Transaction | None] = ContextVar("vagoth_transaction", default=None)


def user_name() -> str:
    """The name this process's user logs in with; the numeric id where there is none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        import os

        return str(os.getuid())


def current() -> Transaction | None:
    """The transaction in force here, if there is one."""
    return _current.get()


@contextmanager
def transaction(*, source: str | None = None, reason: str = "") -> Iterator[Transaction]:
    """Open a transaction; inside another, add to the outer one's reason and keep its txid."""
    outer = _current.get()
    if outer is None:
        opened = Transaction(new_txid(), source or user_name(), reason)
    else:
        trail = " > ".join(part for part in (outer.reason, reason) if part)
        opened = Transaction(outer.id, source or outer.source, trail)
    token = _current.set(opened)
    try:
        yield opened
    finally:
        _current.reset(token)


class TransactionFilter(logging.Filter):
    """Gives each log record ``txid`` and ``source``, for use in a format string."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Never drops a record."""
        tx = _current.get()
        record.txid = tx.id if tx else "-"
        record.source = tx.source if tx else "-"
        return True
