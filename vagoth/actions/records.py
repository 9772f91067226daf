"""Actions on records alone: new, set, delete. No host is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace

from vagoth.actions.base import Action, Context, Plan, Step
from vagoth.actions.recovery import settle
from vagoth.allocator import Allocator
from vagoth.errors import InUse, StaleRevision
from vagoth.model import Change, Delete, Put, Record, guest_uuid_of
from vagoth.registry.rules import decide
from vagoth.scheduler import Job
from vagoth.view import View


class New(Action):
    """Add a node to the registry."""

    verb = "new"
    in_order: ClassVar[bool] = False

    def __init__(self, record: Record) -> None:
        super().__init__(record.id)
        self.record = record

    def plan(self, view: View, allocator: Allocator) -> Plan:
        expect = {self.record.id: None}
        decide(view, [Put(self.record)], expect=expect, revision="", now=0.0)
        return Plan(
            self.verb,
            self.record.name,
            (Step(f"add {self.record.name} to the registry"),),
            differences(view, None, self.record),
        )

    async def run(self, context: Context, job: Job) -> Record:
        await context.registry.commit([Put(self.record)], expect={self.record.id: None})
        return context.record(self.node_id)


class Set(Action):
    """Change a record by a function of what it is; ``change`` may raise to refuse."""

    verb = "set"
    in_order: ClassVar[bool] = False

    def __init__(self, node_id: str, change: Callable[[Record], Record]) -> None:
        super().__init__(node_id)
        self.change = change

    def plan(self, view: View, allocator: Allocator) -> Plan:
        before = view.get(self.node_id) or view.find(self.node_id)
        after = self.change(before)
        expect = {before.id: before.revision}
        decide(view, [Put(after)], expect=expect, revision="", now=0.0)
        changes = differences(view, before, after)
        steps = (Step(f"change {', '.join(changes)}"),) if changes else ()
        return Plan(self.verb, before.name, steps, changes)

    async def run(self, context: Context, job: Job) -> Record:
        return await context.registry.update(self.node_id, self.change)


class Remove(Action):
    """Remove a node from the registry, and the links that others have to it.

    :param wait_s: how long to wait for another process that works on the node
    """

    verb = "delete"

    def __init__(self, node_id: str, *, wait_s: float = 0.0) -> None:
        super().__init__(node_id)
        self.wait_s = wait_s

    def plan(self, view: View, allocator: Allocator) -> Plan:
        record = view.get(self.node_id) or view.find(self.node_id)
        changes, expect = self._changes(view, record)
        decide(view, changes, expect=expect, revision="", now=0.0)
        steps = [Step(f"remove {record.name} from the registry")]
        steps += [Step(f"remove the link from {other.name}") for other in view.linking(record.id)]
        return Plan(self.verb, record.name, tuple(steps), differences(view, record, None))

    async def run(self, context: Context, job: Job) -> None:
        async with context.registry.lock(self.node_id, wait_s=self.wait_s):
            await context.registry.refresh()
            if context.record(self.node_id).intent is not None:
                await settle(context, self.node_id)
            while True:
                changes, expect = self._changes(context.view, context.record(self.node_id))
                try:
                    await context.registry.commit(changes, expect=expect)
                except StaleRevision:
                    continue
                return

    def _changes(self, view: View, record: Record) -> tuple[list[Change], Mapping[str, str | None]]:
        if record.parent is not None and guest_uuid_of(record) is not None:
            host = view.name_of(record.parent) or ""
            raise InUse(
                f"{record.name} is placed on {host}",
                holder=host,
                cure=f"undefine {record.name} first",
            )
        linking = [other for other in view.linking(record.id) if other.id != record.id]
        changes: list[Change] = [Put(unlinked(other, record.id)) for other in linking]
        expect = {other.id: other.revision for other in (record, *linking)}
        return [*changes, Delete(record.id)], expect


def unlinked(record: Record, target: str) -> Record:
    """The record without its links to one node."""
    links = {
        name: tuple(id for id in targets if id != target) for name, targets in record.links.items()
    }
    return replace(record, links={name: targets for name, targets in links.items() if targets})


def differences(
    view: View, before: Record | None, after: Record | None
) -> dict[str, tuple[Any, Any]]:
    """The fields in which two records differ, as people read them: before and after."""
    found: dict[str, tuple[Any, Any]] = {}
    for field in _SHOWN:
        old, new = getattr(before, field, None), getattr(after, field, None)
        if field == "parent":
            old, new = view.name_of(old), view.name_of(new)
        if (old or None) != (new or None):
            found[field] = (msgspec.to_builtins(old), msgspec.to_builtins(new))
    return found


_SHOWN = (
    "name",
    "type",
    "state",
    "tenant",
    "parent",
    "tags",
    "keys",
    "links",
    "definition",
    "metadata",
)
