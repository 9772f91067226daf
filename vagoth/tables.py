"""Tables as data: the one seam between what commands find and how it is drawn.

Nothing here knows of terminals or HTML; :mod:`vagoth.render` draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vagoth.model import Record, State, digest
from vagoth.view import View


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


def node_table(
    records: Iterable[Record],
    view: View,
    *,
    looked_at: Callable[[str], float] = lambda _host_id: 0.0,
    title: str = "nodes",
) -> Table:
    """Nodes as a table: one row each, in the order given.

    :param looked_at: when a host (by id) was last looked at; the age of what is shown of it
    """
    records = list(records)
    columns = (
        Column("name", "NAME", Look.NAME),
        Column("type", "TYPE", weight=1),
        Column("state", "STATE", Look.STATE),
        Column("parent", "PARENT"),
        Column("tenant", "TENANT", weight=4),
        Column("tags", "TAGS", Look.LIST, weight=2),
        Column("seen", "SEEN", Look.TIME, weight=3),
    )
    rows = [
        (
            record.name,
            record.type,
            shown_state(record),
            view.name_of(record.parent),
            record.tenant,
            [f"{tag}={value}" if value else tag for tag, value in sorted(record.tags.items())],
            seen_at(record, looked_at),
        )
        for record in records
    ]
    empty = [index for index in (4, 6) if all(row[index] is None for row in rows)]
    kept = [index for index in range(len(columns)) if index not in empty]
    return Table(
        title,
        tuple(columns[index] for index in kept),
        [tuple(row[index] for index in kept) for row in rows],
        records=[as_dict(record, view) for record in records],
        notes=[f"{record.name}: {note}" for record in records for note in alarms(record, view)],
    )


def seen_at(record: Record, looked_at: Callable[[str], float]) -> float | None:
    """When what is shown of a node was last true for certain; nothing if it never was on a host.

    That is when its host was last looked at, or when an action or event last changed its state.
    """
    if record.type == "hv":
        return looked_at(record.id) or None
    if record.parent is None:
        return None
    return max(looked_at(record.parent), record.state_since) or None


def shown_state(record: Record) -> str:
    """The state, its alarm, and whether an edit waits for the next start: ``running duplicate``."""
    words = [record.state]
    if record.alarm:
        words.append(record.alarm)
    if is_pending(record):
        words.append("pending")
    return " ".join(words)


def is_pending(record: Record) -> bool:
    """Whether the guest is as an earlier definition was, until it is next started."""
    if record.parent is None or not record.applied or record.state == State.MISSING:
        return False
    return record.applied != digest(record)


def alarms(record: Record, view: View) -> Iterator[str]:
    """What a person must know about the node, a sentence each."""
    if record.alarm == "duplicate":
        hosts = [view.name_of(id) or id for id in record.metadata.get("duplicate_on", ())]
        home = view.name_of(record.parent) or "no host"
        yield f"it was found running on {', '.join(hosts)}, and its claim is on {home}"
    if record.type == "hv" and record.metadata.get("problem"):
        yield str(record.metadata["problem"])
    if record.intent is not None:
        yield f"{record.intent.action} begun by {record.intent.owner}"


def as_dict(record: Record, view: View) -> dict[str, Any]:
    """A node as ``--json`` prints it: parent and links by name."""
    return {
        "id": record.id,
        "name": record.name,
        "type": record.type,
        "tenant": record.tenant,
        "state": record.state,
        "alarm": record.alarm,
        "intent": record.intent.action if record.intent is not None else None,
        "parent": view.name_of(record.parent),
        "tags": dict(record.tags),
        "keys": list(record.keys),
        "definition": record.definition,
        "metadata": record.metadata,
        "links": {
            name: [view.name_of(target) for target in targets]
            for name, targets in record.links.items()
        },
    }
