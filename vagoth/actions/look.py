"""Looking at hosts: one bulk call each, all at once, and what was seen in one commit."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence

from vagoth.actions.base import Context, commit_seen, hypervisor
from vagoth.actions.observe import (
    Look,
    active,
    distinct,
    guests_seen,
    host_down,
    host_up,
    overtaken,
)
from vagoth.errors import HostError, HostUnreachable, VagothError
from vagoth.model import Record, State
from vagoth.view import View

log = logging.getLogger(__name__)

#: How many looks in all, where others write what is looked at meanwhile.
LOOK_AGAIN = 3


async def look_at(context: Context, hosts: Sequence[Record]) -> list[Look]:
    """Look at these hosts and write down what differs; a host in trouble stops no other.

    Where a VM is found that another host has the claim of, that host is looked at too: only
    both together tell a guest that was moved from one that runs twice.

    :return: a look for each host, in order; its ``error`` says what was wrong
    """
    for _ in range(LOOK_AGAIN):
        looks = await asyncio.gather(*(_look(context, host) for host in hosts))
        homes = _homes(context.view, looks)
        looks += await asyncio.gather(*(_look(context, host) for host in homes))
        looks = distinct(context.view, looks)
        is_overtaken = await write_down(context, looks)
        if not is_overtaken:
            break
    context.looks.note(looks)
    return looks[: len(hosts)]


async def write_down(context: Context, looks: Sequence[Look]) -> bool:
    """Commit what these looks show; whether they were overtaken, and it is worth looking again."""
    for look in looks:
        _report(context.view, look)
    is_overtaken = False

    def find() -> list[Record]:
        nonlocal is_overtaken
        told_apart = distinct(context.view, looks)
        is_overtaken = overtaken(context.view, told_apart)
        return list(seen(context.view, told_apart))

    await commit_seen(context.registry, find)
    return is_overtaken


def _homes(view: View, looks: Sequence[Look]) -> list[Record]:
    """The hosts, not looked at, that have the claim of a guest found active elsewhere."""
    looked_at = {look.host_id for look in looks}
    found = [
        vm.parent
        for look in looks
        for uuid, guest in (look.guests or {}).items()
        if active(guest) and (vm := view.by_key(f"uuid:{uuid}")) and vm.parent is not None
    ]
    return [host for id in dict.fromkeys(found) if id not in looked_at and (host := view.get(id))]


def seen(view: View, looks: Sequence[Look]) -> Iterator[Record]:
    """The records that differ from what these looks show: hosts first, then their VMs."""
    for look in looks:
        if look.error is None:
            yield from host_up(view, look)
        else:
            yield from host_down(view, look.host_id, look.error)
    yield from guests_seen(view, looks)


async def _look(context: Context, record: Record) -> Look:
    generation, begun = context.view.generation, time.monotonic()
    patience_s = context.connect_timeout_s
    facts = guests = error = None
    try:
        session = await context.sessions.get(hypervisor(record))
        await context.identify(session)
        try:
            async with asyncio.timeout(patience_s):
                facts, found = await asyncio.gather(session.facts(), session.guests())
                guests = {guest.uuid: guest for guest in found}
        except TimeoutError:
            raise HostUnreachable(record.name, f"no answer within {patience_s:g} s") from None
    except HostError as trouble:
        error = trouble
    except VagothError as trouble:
        error = HostError(record.name, trouble.message, cure=trouble.cure)
    except Exception as trouble:
        # A driver's fault stays its host's.
        log.exception("%s: its driver failed", record.name)
        error = HostError(record.name, f"its driver failed: {type(trouble).__name__}: {trouble}")
    took_s = time.monotonic() - begun
    return Look(record.id, generation, time.time(), took_s, facts, guests, error)


def _report(view: View, look: Look) -> None:
    host = view.get(look.host_id)
    if host is None:
        return
    if look.error is not None and host.state != State.UNREACHABLE:
        log.warning("%s", look.error)
    elif look.error is None and host.state == State.UNREACHABLE:
        log.info("%s is back", host.name)
