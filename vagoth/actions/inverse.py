"""What would take a transaction back, and what stands in the way; pure.

Each record is taken back field by field, and tags, metadata and definitions key by key, so that
what others wrote beside it stays. What others wrote over it, or built on it, stands in the way,
and so does what only a host can take back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from msgspec.structs import replace

from vagoth.actions.observe import HOST_KEY
from vagoth.errors import Conflict, InvalidInput
from vagoth.model import Change, Commit, Delete, Put, Record, RecordChange, State
from vagoth.registry.rules import decide
from vagoth.view import View

#: Fields of the user's, whatever the type.
_USERS = ("name", "type", "tenant", "tags", "keys", "links", "definition", "metadata")
#: Metadata that is seen on hosts: neither taken back nor in the way, as keys of hosts' machines.
_SEEN = frozenset({"facts", "problem", "duplicate_on"})
_ALARMS = frozenset({"problem", "duplicate_on"})
_ACTIVE = (State.RUNNING, State.PAUSED)
_OFF = (State.DEFINED, State.STOPPED, State.CRASHED)
_NOTHING: Any = object()


@dataclass(frozen=True)
class Past:
    """A transaction as history tells it.

    ``changes`` holds what it did to each record (by id), oldest first; what it did in a row, with
    nobody else in between, as one change. ``later`` is the last commit of others, since it began,
    that wrote what is at a dotted path (``tags.env``, and ``tags``) in one of these records.
    """

    txid: str
    changes: Mapping[str, Sequence[RecordChange]]
    later: Mapping[tuple[str, str], Commit]


@dataclass(frozen=True)
class Types:
    """What the types of nodes have to say.

    ``initial_state`` is the state in which a node of that type is restored; nothing where its
    state is its user's. ``check`` raises InvalidInput where a record's definition will not do.
    """

    initial_state: Callable[[str], str | None]
    check: Callable[[Record], None]


@dataclass(frozen=True)
class Obstacle:
    """What stands in the way, ``holder`` being the node that it is about; and what can be done."""

    problem: str
    holder: str = ""
    cure: str = ""

    def __str__(self) -> str:
        return f"{self.problem} ({self.cure})" if self.cure else self.problem


class Inverse:
    """What would take a transaction back, and what stands in the way; pure.

    ``changes`` go from what records are in ``view`` to what they would be.
    """

    def __init__(self, view: View, past: Past, types: Types) -> None:
        self.changes: list[RecordChange] = []
        self.obstacles: list[Obstacle] = []
        self._view = view
        self._past = past
        self._types = types
        for node_id, chain in past.changes.items():
            self._take_back(view.get(node_id), chain)
        if not self.obstacles:
            self._check_rules()

    def wanted(self) -> tuple[list[Change], dict[str, str | None]]:
        """The changes as a commit, and the revisions that it expects."""
        changes: list[Change] = []
        expect: dict[str, str | None] = {}
        for change in self.changes:
            node_id = change.record.id
            changes.append(Put(change.after) if change.after is not None else Delete(node_id))
            expect[node_id] = change.before.revision if change.before is not None else None
        return changes, expect

    def _take_back(self, current: Record | None, chain: Sequence[RecordChange]) -> None:
        wanted = current
        for change in reversed(chain):
            if change.after is None:
                wanted = self._restored(wanted, change)
            elif change.before is None:
                wanted = self._removed(wanted, change.after)
            else:
                wanted = self._merged(wanted, change.before, change.after)
        first, last = chain[0].before, chain[-1].after
        if current is not None and first is not None and last is not None:
            self._check_host(current, first, last)
        if wanted is current:
            return
        if wanted is not None and current is not None and not any(self._unlike(wanted, current)):
            return
        self.changes.append(RecordChange(current, wanted))
        if current is not None:
            self._check_free(current, wanted)

    def _restored(self, current: Record | None, change: RecordChange) -> Record | None:
        gone = change.before
        if gone is None:
            return current
        if current is not None:
            if any(self._unlike(current, gone)):
                self._refuse(current, "is there again, and is not what it was", "")
            return current
        fields: dict[str, Any] = {"intent": None, "alarm": None, "applied": ""}
        state = self._types.initial_state(gone.type)
        if state is not None:
            fields["state"] = state
        if gone.type == "vm" or gone.parent is None:
            fields |= {"parent": None, "claimed_at": None}
        metadata = {key: value for key, value in gone.metadata.items() if key not in _ALARMS}
        return replace(gone, metadata=metadata, **fields)

    def _removed(self, current: Record | None, made: Record) -> Record | None:
        if current is None:
            return None
        for field in self._unlike(current, made):
            self._refuse_later(current, field)
        if current.type == "vm" and current.parent is not None:
            how = "stop and undefine it" if current.state in _ACTIVE else "undefine it"
            home = self._view.name_of(current.parent)
            self._refuse(current, f"is placed on {home}", f"{how} first")
        return None

    def _merged(self, current: Record | None, before: Record, after: Record) -> Record | None:
        if current is None:
            by = self._by(before.id, "created")
            self._refuse(before, f"was deleted since{by}", "undo that first")
            return None
        fields: dict[str, Any] = {}
        for field in self._users(after.type):
            clashes: list[str] = []
            sides = [self._own(record, field) for record in (current, after, before)]
            fields[field] = _merge(field, sides, clashes)
            for path in clashes:
                self._refuse_later(current, path)
        # What is seen on hosts stays as it is.
        keys, metadata = self._own(current, "keys"), self._own(current, "metadata")
        seen = {key: value for key, value in current.metadata.items() if key not in metadata}
        fields["keys"] = tuple(sorted({*current.keys} - {*keys} | {*fields["keys"]}))
        fields["metadata"] = {**fields["metadata"], **seen}
        return replace(current, **fields)

    def _check_host(self, current: Record, first: Record, last: Record) -> None:
        """Refuse what only a host can take back, unless that was done already.

        A host's own state is only seen, so it neither is taken back nor is in the way.
        """
        users = {*self._users(current.type)}
        if "parent" not in users and first.parent not in (last.parent, current.parent):
            was, now = (self._view.name_of(each.parent) for each in (first, current))
            problem = f"was on {was or 'no host'} and is on {now or 'no host'}"
            self._refuse(current, problem, _place_again(self._view, current, first))
        elif "state" not in users and first.state not in (last.state, current.state):
            if current.type == "hv" or (first.state in _OFF and current.state in _OFF):
                return
            problem = f"was {first.state} and is {current.state}, which only its host can change"
            self._refuse(current, problem, _state_again(current, first))

    def _check_free(self, current: Record, wanted: Record | None) -> None:
        if current.intent is not None:
            begun = f"{current.intent.action} begun by {current.intent.owner}"
            self._refuse(current, f"is being worked on: {begun}", "see: jobs")
        elif wanted is not None and current.type == "vm" and current.parent is not None:
            uuids = [[k for k in r.keys if k.startswith("uuid:")] for r in (current, wanted)]
            if uuids[0] != uuids[1]:
                home = self._view.name_of(current.parent)
                self._refuse(
                    current, f"has its UUID for as long as it is on {home}", "undefine it first"
                )

    def _check_rules(self) -> None:
        """Have types and registry judge: definitions, what was taken since, children, links."""
        there = {change.after.id for change in self.changes if change.after is not None}
        for before, after in ((change.before, change.after) for change in self.changes):
            if after is None:
                continue
            for target in (after.parent, *(id for ids in after.links.values() for id in ids)):
                if target is not None and target not in there and target not in self._view:
                    self._refuse(after, f"belongs to node {target}, which was deleted since", "")
            if before is not None and before.definition != after.definition:
                self._judge(partial(self._types.check, after), after.name)
        if not self.obstacles:
            changes, expect = self.wanted()
            self._judge(lambda: decide(self._view, changes, expect=expect, revision="", now=0.0))

    def _judge(self, rule: Callable[[], object], about: str = "") -> None:
        try:
            rule()
        except (Conflict, InvalidInput) as error:
            told = f"{about}: {error.message}" if about else error.message
            holder = error.holder if isinstance(error, Conflict) else about
            self.obstacles.append(Obstacle(told, holder, error.cure))

    def _users(self, type: str) -> Iterator[str]:
        yield from _USERS
        if self._types.initial_state(type) is None:
            yield "state"
        if type != "vm":
            yield "parent"

    def _unlike(self, one: Record, other: Record) -> Iterator[str]:
        for field in self._users(other.type):
            if self._own(one, field) != self._own(other, field):
                yield field

    def _own(self, record: Record, field: str) -> Any:
        """The field's value, without what is only seen on hosts."""
        value = getattr(record, field)
        if self._types.initial_state(record.type) is not None:
            if field == "metadata":
                return {key: item for key, item in value.items() if key not in _SEEN}
            if field == "keys":
                return tuple(key for key in value if not key.startswith(HOST_KEY))
        return value

    def _refuse_later(self, current: Record, path: str) -> None:
        by = self._by(current.id, path)
        self._refuse(current, f"had its {path} changed since{by}", "undo that first" if by else "")

    def _by(self, node_id: str, path: str) -> str:
        commit = self._past.later.get((node_id, path))
        if commit is None:
            return ""
        why = f"{commit.source}: {commit.reason}" if commit.reason else commit.source
        return f" by transaction {commit.txid}, {why}"

    def _refuse(self, record: Record, problem: str, cure: str) -> None:
        self.obstacles.append(Obstacle(f"{record.name} {problem}", record.name, cure))


def _merge(path: str, sides: Sequence[Any], clashes: list[str]) -> Any:
    """The current value with the step from ``before`` to ``after`` taken back.

    :param sides: current, after, before
    :param clashes: is given the path of each value that is neither any more
    """
    current, after, before = sides
    if current == after:
        return before
    if before in (after, current):
        return current
    if all(isinstance(side, Mapping) for side in sides):
        return _merge_mappings(path, sides, clashes)
    if path == "keys":
        return _merge_items(current, after, before)
    if path.startswith("links."):
        return _merge_items(*(() if side is _NOTHING else side for side in sides)) or _NOTHING
    clashes.append(path)
    return current


def _merge_mappings(
    path: str, sides: Sequence[Mapping[str, Any]], clashes: list[str]
) -> dict[str, Any]:
    current, after, before = sides
    merged = {}
    for key in {**before, **current, **after}:
        values = [side.get(key, _NOTHING) for side in sides]
        value = _merge(f"{path}.{key}", values, clashes)
        if value is not _NOTHING:
            merged[key] = value
    return merged


def _merge_items(
    current: Sequence[str], after: Sequence[str], before: Sequence[str]
) -> tuple[str, ...]:
    added = {*after} - {*before}
    kept = [item for item in current if item not in added]
    lost = [item for item in before if item not in after and item not in current]
    return (*kept, *lost)


def _place_again(view: View, current: Record, before: Record) -> str:
    """The command that makes a node's place again what it was."""
    name, home = current.name, view.name_of(before.parent)
    if before.parent is None:
        stop = f"stop {name}, then " if current.state in _ACTIVE else ""
        return f"use: {stop}undefine {name}"
    if current.parent is None:
        return f"use: {'start' if before.state in _ACTIVE else 'define'} {name} --on {home}"
    return f"use: migrate {name} {home}"


def _state_again(current: Record, before: Record) -> str:
    """The command that makes a node's state again what it was."""
    name = current.name
    if current.type != "vm" or before.state not in (*_ACTIVE, *_OFF):
        return "poll asks its host"
    if before.state == State.PAUSED:
        return f"use: pause {name}"
    if before.state == State.RUNNING:
        return f"use: {'resume' if current.state == State.PAUSED else 'start'} {name}"
    return f"use: shutdown {name}"
