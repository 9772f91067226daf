"""What was: the cluster at a past moment, and what differs between two moments.

All of it works on records and commits that it is given. The order of commits is the order in
which they were made; what the clock said then only tells which of them a time means.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from vagoth.errors import InvalidInput, NodeNotFound, nearest
from vagoth.model import Commit, Record, RecordChange
from vagoth.query import Document, every, hint_of
from vagoth.view import View, natural

#: What may be given for a time, in words.
TIME = "a time ago such as 90s, 15m, 1h, 2d or 1w, or an ISO time such as 2024-05-01T12:30:00"
#: What may be given for a moment.
MOMENT = f"{TIME}, or a transaction's id"
When = float | str | datetime

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
# Eight digits at most: what has ten letters and digits is a transaction's id.
_DURATION = re.compile(r"([0-9]{1,8}(?:\.[0-9]{1,6})?)([smhdw])")
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9:.,]+(?:Z|[+-][0-9:]+)?)?")
_TXID = re.compile(r"[A-Za-z0-9]+")
_TXIDS_COMPARED = 1000


# --- times --------------------------------------------------------------------------------


def time_of(when: When, *, now: float, field: str = "time") -> float:
    """A past time in epoch seconds: from a number of them, a datetime, or text.

    Text is a duration before ``now`` (``15m``) or an ISO time, which is local where it names no
    zone; so is a datetime.

    :raises InvalidInput: it is none of these, or lies in the future
    """
    try:
        time = _read_time(when, now)
    except (ValueError, OverflowError, OSError):
        raise InvalidInput(field, when, TIME) from None
    if time is None or not math.isfinite(time):
        raise InvalidInput(field, when, TIME)
    if time > now:
        raise InvalidInput(field, when, "in the past", message=f"{when} lies in the future")
    return time


def _read_time(when: When, now: float) -> float | None:
    if isinstance(when, datetime):
        return when.timestamp()
    if not isinstance(when, str):
        return float(when)
    if match := _DURATION.fullmatch(when):
        return now - float(match[1]) * _UNITS[match[2]]
    return datetime.fromisoformat(when).timestamp() if _ISO.fullmatch(when) else None


def written(time: float) -> str:
    """A time in full, in UTC, as :func:`time_of` reads it."""
    try:
        return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{time:g} s"


class Moment(NamedTuple):
    """A place in the stream of commits: behind the last one up to ``time``, or of ``txid``."""

    given: When
    time: float | None = None
    txid: str | None = None

    @classmethod
    def of(cls, when: When, *, now: float) -> Moment:
        """The moment that a time (see :func:`time_of`) or the id of a transaction means.

        An ISO time written without fractions means all of its second, so that the time shown
        for a commit is one at which it had been made.

        :raises InvalidInput: it is neither, or lies in the future
        """
        is_time = not isinstance(when, str) or _DURATION.fullmatch(when) or _ISO.fullmatch(when)
        if is_time:
            time = time_of(when, now=now)
            is_whole = isinstance(when, str) and bool(_ISO.fullmatch(when)) and time == int(time)
            return cls(when, time=time + 0.999999 if is_whole else time)
        assert isinstance(when, str)
        if not _TXID.fullmatch(when):
            raise InvalidInput("time", when, MOMENT)
        return cls(when, txid=when)

    def is_reached(self, commit: Commit) -> bool:
        """Whether the moment is right behind ``commit``, no later one being so."""
        if self.txid is not None:
            return commit.txid == self.txid
        assert self.time is not None
        return commit.time <= self.time


def no_transaction(txid: str, known: Iterable[str], *, or_time: bool = False) -> InvalidInput:
    """The error for the id of a transaction that history does not have; names the nearest."""
    near = nearest(txid, known)
    also = ", and it is no time either" if or_time else ""
    cure = f"expected {MOMENT}" if or_time else "see: history"
    return InvalidInput(
        "transaction",
        txid,
        "the id of a transaction",
        message=f"history has no transaction {txid!r}{also}",
        cure=f"did you mean {near}?" if near else cure,
    )


# --- the cluster as it was ------------------------------------------------------------------


class Handle(Protocol):
    """Anything that knows the id of its node, as a :class:`~vagoth.nodes.base.Node` does."""

    @property
    def id(self) -> str:
        """What never changes."""
        ...


class Snapshot(View):
    """The cluster as it was at one moment: found and selected like what is, and never changing.

    ``time`` and ``txid`` are those of the last commit in it.
    """

    def __init__(self, records: Iterable[Record], commit: Commit) -> None:
        super().__init__()
        self.load(records)
        self.time = commit.time
        self.txid = commit.txid

    def nodes(
        self,
        *conditions: str | Callable[[Mapping[str, Any]], bool],
        parent: Handle | str | None = None,
        **filters: Any,
    ) -> list[Record]:
        """The records that meet every condition, as ``cluster.nodes(…)`` understands them.

        :param conditions: a pattern for the name, TinyDB queries, functions of the record as a
            mapping
        :param parent: a handle, or what the parent was called then, its id, or a key of it
        :param filters: ``type``, ``state``, ``tenant``, ``tags`` and ``key``
        :raises NodeNotFound: there was no such parent then
        """
        globs = [each for each in conditions if isinstance(each, str)]
        queries = [each for each in conditions if not isinstance(each, str)]
        if len(globs) > 1:
            raise InvalidInput("conditions", globs, "one pattern for the name at most")

        hints = [hint for query in queries if (hint := hint_of(query)) is not None]

        def meets(record: Record) -> bool:
            document = Document(record)
            return all(query(document) for query in queries)

        if isinstance(parent, str):
            parent = self.find(parent)
        return self.select(
            globs[0] if globs else None,
            parent=parent.id if parent is not None else None,
            where=meets if queries else None,
            hint=every(hints),
            **filters,
        )


async def rewound(
    records: Iterable[Record], position: str, commits: AsyncIterator[Commit], moment: Moment
) -> Snapshot:
    """Records as they were at a moment: commits are taken back until it is reached.

    :param records: all there are, as they were at ``position``
    :param commits: newest first; read only as far as needed
    :raises InvalidInput: the moment is before what is kept of history, which the error names;
        or no such transaction is in it
    """
    then = {record.id: record for record in records}
    passed: dict[str, None] = {}
    oldest: Commit | None = None
    async for commit in commits:
        # What was committed after the records were taken is not in them.
        if oldest is None and commit.position != position:
            continue
        if moment.is_reached(commit):
            # The indexes of a large cluster take a while to build.
            return await asyncio.to_thread(Snapshot, then.values(), commit)
        take_back(then, commit)
        oldest = commit
        if len(passed) < _TXIDS_COMPARED:
            passed[commit.txid] = None
    if moment.txid is not None:
        raise no_transaction(moment.txid, passed, or_time=True)
    raise _too_early(moment, oldest)


def take_back(records: dict[str, Record], commit: Commit) -> None:
    """Make ``records``, as they were right after a commit, what they were before it."""
    for change in commit.changes:
        if change.before is None:
            records.pop(change.record.id, None)
        else:
            records[change.before.id] = change.before


def _too_early(moment: Moment, oldest: Commit | None) -> InvalidInput:
    since = f"history is kept since {written(oldest.time)}" if oldest else "no history is kept"
    return InvalidInput(
        "time", moment.given, "a time since then", message=f"{since}: {moment.given} is before that"
    )


def differences(before: Iterable[Record], after: Iterable[Record]) -> list[RecordChange]:
    """What differs between two moments, by name; what is only bookkeeping is left out."""
    old = {record.id: record for record in before}
    changes = []
    for record in after:
        was = old.pop(record.id, None)
        change = RecordChange(was, record)
        if was is None or (was is not record and any(change.fields())):
            changes.append(change)
    changes += [RecordChange(record, None) for record in old.values()]
    return sorted(changes, key=lambda change: natural(change.record.name))


async def deleted_node(name: str, view: View, commits: AsyncIterator[Commit]) -> str:
    """The id of the deleted node that a person means by its last name, its id, or a key.

    :param commits: all of them, newest first
    :raises NodeNotFound: there never was one that ended so; the error holds the nearest name
    :raises InvalidInput: several did; the error names their ids
    """
    gone: dict[str, tuple[Record, Commit]] = {}
    async for commit in commits:
        for change in commit.changes:
            if change.after is None and change.before is not None and change.before.id not in view:
                if change.before.id == name:
                    return name
                gone.setdefault(change.before.id, (change.before, commit))
    found = [item for item in gone.values() if item[0].name == name]
    found = found or [item for item in gone.values() if name in item[0].keys]
    if not found:
        raise NodeNotFound(name, candidates=[*view.names(), *(r.name for r, _ in gone.values())])
    if len(found) > 1:
        told = ", ".join(f"{record.id} until {written(last.time)}" for record, last in found)
        raise InvalidInput(
            "node",
            name,
            "one node",
            message=f"{len(found)} deleted nodes were called {name!r}: {told}",
            cure="name one by its id",
        )
    return found[0][0].id
