"""Undo: the inverse of a transaction, as a new one. It changes the registry and asks no host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from vagoth.actions.base import Context, Plan, Step
from vagoth.actions.inverse import Inverse, Past, Types
from vagoth.actions.records import differences
from vagoth.errors import Conflict, StaleRevision
from vagoth.history import no_transaction
from vagoth.model import Commit, RecordChange
from vagoth.registry.base import Registry
from vagoth.view import View

_TRIES = 50
_TOLD = 8
_TXIDS_COMPARED = 1000


async def past_of(registry: Registry, txid: str) -> Past:
    """A transaction, and what others did since to the same records, from history.

    :raises InvalidInput: history has no such transaction; the error names the nearest
    """
    own = [commit async for commit in registry.history(txid=txid)]
    if not own:
        raise no_transaction(txid, await _known(registry.history()))
    changes: dict[str, list[RecordChange]] = {}
    for commit in reversed(own):
        for change in commit.changes:
            _append(changes.setdefault(change.record.id, []), change)
    later: dict[tuple[str, str], Commit] = {}
    async for commit in registry.history():
        if commit.position == own[-1].position:
            break
        if commit.txid == txid:
            continue
        for change in commit.changes:
            if change.record.id in changes:
                for field in change.fields():
                    sides = (getattr(each, field, None) for each in (change.before, change.after))
                    for path in _paths(field, *sides):
                        later.setdefault((change.record.id, path), commit)
    return Past(txid, changes, later)


def _paths(path: str, before: Any, after: Any) -> Iterator[str]:
    """The path of what differs, and of all that differs in it."""
    if before != after:
        yield path
        sides = [side if isinstance(side, Mapping) else {} for side in (before, after)]
        for key in {**sides[0], **sides[1]}:
            yield from _paths(f"{path}.{key}", sides[0].get(key), sides[1].get(key))


async def _known(commits: AsyncIterator[Commit]) -> list[str]:
    known: dict[str, None] = {}
    async for commit in commits:
        known[commit.txid] = None
        if len(known) == _TXIDS_COMPARED:
            break
    return list(known)


def _append(chain: list[RecordChange], change: RecordChange) -> None:
    if chain and chain[-1].after == change.before:
        change = RecordChange(chain.pop().before, change.after)
    chain.append(change)


class Undo:
    """Take a transaction back.

    :param wait_s: how long to wait for others that work on a node which would be removed
    """

    def __init__(self, txid: str, types: Types, *, wait_s: float = 0.0) -> None:
        self.txid = txid
        self.types = types
        self.wait_s = wait_s

    async def plan(self, registry: Registry) -> list[Plan]:
        """What would be done now, a plan for each node; none: there is nothing to take back.

        :raises InvalidInput: history has no such transaction
        :raises Conflict: something stands in the way; the error names all of it
        """
        await registry.refresh()
        inverse = self._inverse(registry.view, await past_of(registry, self.txid))
        return [_planned(registry.view, change) for change in inverse.changes]

    async def run(self, context: Context) -> Commit | None:
        """Do it, in one commit.

        :return: the commit; nothing if all was as before already, so a retry is safe
        :raises Busy: a node that would be removed is being worked on
        :raises VagothError: as :meth:`plan` does; nothing was changed
        """
        registry = context.registry
        await registry.refresh()
        past = await past_of(registry, self.txid)
        self._inverse(registry.view, past)
        made = [node_id for node_id, chain in past.changes.items() if chain[0].before is None]
        async with AsyncExitStack() as stack:
            # As for delete: nobody may start what is being removed. In one order for all.
            for node_id in sorted(node_id for node_id in made if node_id in registry.view):
                await stack.enter_async_context(registry.lock(node_id, wait_s=self.wait_s))
            for _ in range(_TRIES):
                await registry.refresh()
                changes, expect = self._inverse(registry.view, past).wanted()
                try:
                    return await registry.commit(changes, expect=expect)
                except StaleRevision:
                    past = await past_of(registry, self.txid)
        raise StaleRevision(f"what {self.txid} changed is written faster than it can be read")

    def _inverse(self, view: View, past: Past) -> Inverse:
        inverse = Inverse(view, past, self.types)
        if inverse.obstacles:
            told = [str(each) for each in inverse.obstacles[:_TOLD]]
            more = len(inverse.obstacles) - len(told)
            told += [f"and {more} more"] if more else []
            raise Conflict(
                f"transaction {self.txid} is not taken back: {'; '.join(told)}",
                holder=inverse.obstacles[0].holder,
            )
        return inverse


def _planned(view: View, change: RecordChange) -> Plan:
    changes = differences(view, change.before, change.after)
    name = change.record.name
    if change.after is None:
        step = f"remove {name} from the registry"
    elif change.before is None:
        step = f"add {name} to the registry again"
    else:
        name = change.before.name
        step = f"put back {', '.join(changes)}"
    return Plan("undo", name, (Step(step),), changes)
