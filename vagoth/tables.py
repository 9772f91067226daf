"""Tables as data: the one seam between what commands find and how it is drawn.

Nothing here knows of terminals or HTML; :mod:`vagoth.render` draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Look(StrEnum):
    """What the values of a column mean, so that they are drawn alike everywhere."""

    TEXT = "text"
    NAME = "name"
    STATE = "state"
    TIME = "time"
    BYTES = "bytes"
    NUMBER = "number"
    LIST = "list"


@dataclass(frozen=True)
class Column:
    """One column: ``key`` names it in JSON, ``title`` above it. Times are epoch seconds,
    sizes bytes. ``weight`` 0 is kept longest when a terminal is too narrow."""

    key: str
    title: str
    look: Look = Look.TEXT
    weight: int = 0


@dataclass(frozen=True)
class Table:
    """Rows under columns. ``records`` is what ``--json`` prints where it is more than the rows;
    ``notes`` stand below (warnings, what was left out)."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    records: Any = None
    notes: Sequence[str] = field(default_factory=tuple)
