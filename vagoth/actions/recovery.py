"""What is true of a VM on which an action was begun and not finished: asked, then written down.

The same code serves an action that failed in this process and one whose process died: what
counts is what the hosts say, never what the action believed it had done.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from vagoth.actions.base import LANDING_S, Context, guest_uuid, settled_state, together
from vagoth.actions.observe import DUPLICATE, active, vm_state
from vagoth.drivers.base import Guest, Power
from vagoth.errors import OutcomeUnknown, VagothError
from vagoth.model import Intent, Record, State

log = logging.getLogger(__name__)

#: How long hosts may take to say what is true.
ANSWER_S = 15.0
#: How often they are asked while something is still under way there.
ASK_AGAIN_S = 0.2


@dataclass(frozen=True)
class Truth:
    """Where the guest belongs, by what the hosts say. ``leftover`` has it, off, and should not."""

    parent: str | None
    state: str
    alarm: str | None = None
    leftover: str | None = None


def resolve(record: Record, intent: Intent, there: Mapping[str, Guest | None]) -> Truth:
    """What becomes of a VM whose action ended half-way; pure.

    What runs goes on running where it runs. A claim that the action made, of a guest that does
    not run, is taken back, unless all that was wanted was to define it.

    :param there: what each host that may have the guest said (by id)
    """
    args = intent.args
    before = args.get("state", State.STOPPED)
    awake = [id for id, guest in there.items() if guest and guest.power is Power.RUNNING]
    running = [host_id for host_id, guest in there.items() if active(guest)]
    present = [host_id for host_id, guest in there.items() if guest is not None]
    if len(running) > 1:
        # A migration that died between its last steps leaves the source paused: what is awake
        # is the guest. Nothing is mended silently, and the other must never be resumed.
        home = awake[0] if len(awake) == 1 else record.parent
        return Truth(home, State.RUNNING, alarm=DUPLICATE)
    if running:
        others = [host_id for host_id in present if host_id not in running]
        state = vm_state(before, there[running[0]])
        return Truth(running[0], state, leftover=others[0] if others else None)
    if intent.action == "undefine" and not present:
        return Truth(None, State.NEW)
    if args.get("claimed"):
        if intent.action == "define" and present:
            return Truth(present[0], State.DEFINED)
        return Truth(None, State.NEW, leftover=present[0] if present else None)
    home = record.parent
    if home not in present and present:
        home = present[0]
    guest = there.get(home) if home is not None else None
    return Truth(home, vm_state(before, guest))


async def settle(context: Context, node_id: str) -> Record:
    """Ask the hosts what is true of the VM, finish or take back, and clear its intent.

    The caller holds the node's lock.

    :return: the record as it then is
    :raises OutcomeUnknown: a host that may have it does not answer. The state is ``unknown``,
        and the intent stays for whoever comes next
    """
    record = context.record(node_id)
    intent = record.intent
    if intent is None:
        return record
    args = intent.args
    hosts = [record.parent, args.get("host"), args.get("target")]
    asked = [id for id in dict.fromkeys(hosts) if id is not None]
    there, silent = await _ask_until_landed(context, record, intent, asked)
    if silent and not _told_enough(record, there):
        await context.put(replace(record, state=State.UNKNOWN))
        names = ", ".join(f"{context.view.name_of(id)} ({error})" for id, error in silent.items())
        raise OutcomeUnknown(
            f"whether {intent.action} {record.name} happened is not known: no answer from {names}",
            cure=f"poll once it can be reached, or repeat {intent.action}",
        )
    truth = resolve(record, intent, there)
    if truth.leftover is not None and truth.alarm is None:
        truth = await _clear_away(context, record, intent, there, truth)
    ours = intent.owner.process == os.getpid() and intent.owner.machine == socket.gethostname()
    log.log(
        logging.INFO if ours else logging.WARNING,
        "%s: %s by %s was not finished: it is %s on %s",
        record.name,
        intent.action,
        intent.owner,
        truth.state,
        context.view.name_of(truth.parent) or "no host",
    )
    metadata = dict(record.metadata)
    if truth.alarm:
        metadata["duplicate_on"] = sorted(host_id for host_id in asked if host_id != truth.parent)
    return await context.put(
        replace(
            record,
            parent=truth.parent,
            state=truth.state,
            # Only a look at all who had it can take an alarm back.
            alarm=truth.alarm or (record.alarm if truth.parent is not None else None),
            metadata=metadata,
            intent=None,
            applied="" if truth.parent is None else record.applied,
        )
    )


async def settle_despite_cancel(context: Context, node_id: str) -> Record:
    """:func:`settle`, to its end, however often the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(settle(context, node_id))
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            # Bounded by ANSWER_S. The cancellation that began this is raised by the caller.
            continue
    return task.result()


async def _ask_until_landed(
    context: Context, record: Record, intent: Intent, host_ids: list[str]
) -> tuple[dict[str, Guest | None], dict[str, VagothError]]:
    """Ask, and ask again while a call that was sent before is still at work on a host."""
    deadline = time.monotonic() + LANDING_S
    while True:
        there, silent = await _ask(context, record, host_ids)
        # A guest that is being started, or is arriving, shows as paused until it is there.
        arriving = intent.action in ("start", "migrate") and any(
            guest is not None and guest.power is Power.PAUSED for guest in there.values()
        )
        if not arriving or time.monotonic() > deadline:
            return there, silent
        await asyncio.sleep(ASK_AGAIN_S)


async def _ask(
    context: Context, record: Record, host_ids: list[str]
) -> tuple[dict[str, Guest | None], dict[str, VagothError]]:
    uuid = guest_uuid(record)
    answers = await together({id: context.ask(id, uuid) for id in host_ids}, within_s=ANSWER_S)
    there = {id: said for id, said in answers.items() if not isinstance(said, VagothError)}
    silent = {id: said for id, said in answers.items() if isinstance(said, VagothError)}
    return there, silent


def _told_enough(record: Record, there: Mapping[str, Guest | None]) -> bool:
    # A guest that runs where its claim is runs there, whatever a silent host may have half made.
    guest = there.get(record.parent) if record.parent is not None else None
    return guest is not None and guest.power is Power.RUNNING


async def _clear_away(
    context: Context,
    record: Record,
    intent: Intent,
    there: Mapping[str, Guest | None],
    truth: Truth,
) -> Truth:
    uuid = guest_uuid(record)
    assert truth.leftover is not None
    try:
        async with context.session(truth.leftover) as session:
            await session.undefine(uuid)
            # A start that was sent before may have landed only now.
            still = await session.guest(uuid)
    except VagothError as error:
        log.warning("%s: what is left of it stays on its host: %s", record.name, error)
        still = there[truth.leftover]
    if still is None:
        return truth
    return (
        resolve(record, intent, {**there, truth.leftover: still})
        if active(still)
        else Truth(
            truth.parent or truth.leftover,
            truth.state if truth.parent else settled_state(State.STOPPED),
        )
    )
