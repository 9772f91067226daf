"""Looking at hosts: one bulk call each, all at once, and what was seen in one commit."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence

from vagoth.actions.base import Context, commit_seen, hypervisor
from vagoth.actions.observe import Look, guests_seen, host_down, host_up
from vagoth.errors import HostError, HostUnreachable, VagothError
from vagoth.model import Record, State
from vagoth.view import View

log = logging.getLogger(__name__)


async def look_at(context: Context, hosts: Sequence[Record]) -> list[Look]:
    """Look at these hosts and write down what differs; a host in trouble stops no other.

    :return: a look for each host, in order; its ``error`` says what was wrong
    """
    looks = await asyncio.gather(*(_look(context, host) for host in hosts))
    for look in looks:
        _report(context.view, look)
    await commit_seen(context.registry, lambda: seen(context.view, looks))
    context.looks.note(looks)
    return looks


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
        try:
            async with asyncio.timeout(patience_s):
                facts = await session.facts()
                guests = {guest.uuid: guest for guest in await session.guests()}
        except TimeoutError:
            raise HostUnreachable(record.name, f"no answer within {patience_s:g} s") from None
    except HostError as trouble:
        error = trouble
    except VagothError as trouble:
        error = HostError(record.name, trouble.message, cure=trouble.cure)
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
