"""What every registry refuses: pure, so that a file and a server refuse the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from vagoth.errors import InUse, InvalidInput, StaleRevision, Taken
from vagoth.model import (
    Change,
    Put,
    Record,
    RecordChange,
    check_id,
    check_key,
    check_name,
    check_text,
)
from vagoth.view import View

FORMER_KEPT = 8
_Current = Callable[[str], Record | None]
#: What a registry keeps of each record itself, whatever it is given.
CALCULATED = frozenset({"revision", "created", "updated", "state_since", "claimed_at", "former"})


def decide(
    view: View,
    changes: Sequence[Change],
    *,
    expect: Mapping[str, str | None],
    absent: Collection[str] = (),
    revision: str,
    now: float,
) -> tuple[RecordChange, ...]:
    """What a commit of ``changes`` would do to the records in ``view``; raise if it may not.

    The rules hold for the state after all changes together, so one commit can swap two names.
    Records that would not differ are left out. ``revision`` goes into the changed records, and
    ``created``, ``updated``, ``state_since``, ``claimed_at`` and ``former`` are kept here.

    :raises InvalidInput: a malformed name, id, key, tag or link; a parent that is not there or
        that would make a ring; a record changed or deleted without ``expect``
    :raises StaleRevision: a record is not at the revision in ``expect``
    :raises Taken: an id, name or key has another owner, or stands in ``absent`` and has one
    :raises InUse: a deleted node has children, or others link to it
    """
    for node_id, wanted in expect.items():
        _check_revision(view.get(node_id), node_id, wanted)
    for key in absent:
        owner = view.by_key(key)
        if owner is not None:
            raise Taken("key", key, owner.name)
    decided: dict[str, RecordChange] = {}
    for change in changes:
        node_id = change.record.id if isinstance(change, Put) else change.id
        if node_id in decided:
            raise InvalidInput("changes", node_id, "one change for each node")
        before = view.get(node_id)
        if before is not None and node_id not in expect:
            raise InvalidInput("expect", node_id, "the revision of each record that is changed")
        after = (
            _completed(change.record, before, revision, now) if isinstance(change, Put) else None
        )
        if _differs(before, after):
            decided[node_id] = RecordChange(before, after)
    _check_together(view, decided)
    return tuple(decided.values())


def _check_revision(record: Record | None, node_id: str, wanted: str | None) -> None:
    if wanted is None and record is not None:
        raise Taken("id", node_id, record.name)
    if wanted is not None and (record is None or record.revision != wanted):
        name = record.name if record is not None else node_id
        raise StaleRevision(
            f"{name} was changed by somebody else meanwhile",
            holder=name,
            cure="look, and try again",
        )


def _completed(record: Record, before: Record | None, revision: str, now: float) -> Record:
    _check_fields(record, before)
    claimed_at, former = record.claimed_at, record.former
    state_since = record.state_since
    if before is not None:
        claimed_at, former, state_since = before.claimed_at, before.former, before.state_since
    if (before.parent if before else None) != record.parent:
        claimed_at = now if record.parent is not None else None
        if before is not None and before.parent is not None:
            past = (before.parent, *(id for id in former if id != before.parent))
            former = tuple(id for id in past if id != record.parent)[:FORMER_KEPT]
    if before is None or before.state != record.state:
        state_since = now
    return msgspec.structs.replace(
        record,
        keys=tuple(sorted(set(record.keys))),
        claimed_at=claimed_at,
        former=former,
        state_since=state_since,
        created=before.created if before else now,
        updated=now,
        revision=revision,
    )


def _check_fields(record: Record, before: Record | None) -> None:
    if before is None:
        check_id(record.id)
    if before is None or before.name != record.name:
        check_name(record.name)
    for key in record.keys:
        if before is None or key not in before.keys:
            check_key(key)
    check_text(record.type, field="type", length=63)
    check_text(record.state, field="state", length=63)
    if record.tenant is not None:
        check_text(record.tenant, field="tenant")
    for tag, value in record.tags.items():
        check_text(tag, field="tag")
        if "=" in tag:
            raise InvalidInput("tag", tag, "a key without =")
        check_text(value, field=f"tag {tag}", length=1024, empty=True)
    for link in record.links:
        check_text(link, field="link", length=63)


def _differs(before: Record | None, after: Record | None) -> bool:
    if before is None or after is None:
        return before is not after
    return any(
        getattr(before, field) != getattr(after, field)
        for field in Record.__struct_fields__
        if field not in CALCULATED
    )


def _check_together(view: View, decided: Mapping[str, RecordChange]) -> None:
    def current(node_id: str) -> Record | None:
        change = decided.get(node_id)
        return change.after if change is not None else view.get(node_id)

    written = [change.after for change in decided.values() if change.after is not None]
    names: dict[str, Record] = {}
    keys: dict[str, Record] = {}
    for record in written:
        _check_owner("name", record.name, names.get(record.name), record)
        held = view.by_name(record.name)
        _check_owner("name", record.name, current(held.id) if held else None, record, "name")
        # A name that is another node's id would make `find` mean two nodes.
        _check_owner("name", record.name, current(record.name), record)
        named = view.by_name(record.id)
        _check_owner("id", record.id, current(named.id) if named else None, record, "name")
        for key in record.keys:
            _check_owner("key", key, keys.get(key), record)
            held = view.by_key(key)
            _check_owner("key", key, current(held.id) if held else None, record, "keys")
            keys[key] = record
        names[record.name] = record
        _check_parent(record, current)
        for link, targets in record.links.items():
            for target in targets:
                if current(target) is None:
                    raise InvalidInput(f"links.{link}", target, "the id of a node")
    for change in decided.values():
        if change.after is None and change.before is not None:
            _check_unused(view, change.before, current)


def _check_owner(
    what: str, value: str, owner: Record | None, record: Record, still: str = ""
) -> None:
    if owner is None or owner.id == record.id:
        return
    if still == "name" and owner.name != value:
        return
    if still == "keys" and value not in owner.keys:
        return
    raise Taken(what, value, owner.name)


def _check_parent(record: Record, current: _Current) -> None:
    seen = {record.id}
    parent = record.parent
    while parent is not None:
        if parent in seen:
            raise InvalidInput("parent", parent, "a node that is not below this one: no rings")
        seen.add(parent)
        above = current(parent)
        if above is None:
            raise InvalidInput("parent", parent, "the id of a node")
        parent = above.parent


def _check_unused(view: View, gone: Record, current: _Current) -> None:
    def still(records: Iterable[Record]) -> list[Record]:
        return [now for record in records if (now := current(record.id)) is not None]

    for record in still(view.children(gone.id)):
        if record.parent == gone.id:
            raise InUse(
                f"{gone.name} carries {record.name}",
                holder=record.name,
                cure=f"undefine or migrate {record.name} first",
            )
    for record in still(view.with_intent()):
        if record.intent is not None and gone.id in record.intent.args.values():
            raise InUse(
                f"{record.intent.action} of {record.name} needs {gone.name}, and is not over",
                holder=record.name,
                cure=f"let it end; if its process has died, poll {gone.name}",
            )
    for record in still(view.linking(gone.id)):
        for link, targets in record.links.items():
            if gone.id in targets:
                raise InUse(f"{record.name} links to {gone.name} ({link})", holder=record.name)
