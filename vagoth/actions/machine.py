"""Actions on one VM: what they share, and those of a single call to its host."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from msgspec.structs import replace

from vagoth.actions.base import (
    Action,
    Context,
    Plan,
    Step,
    commit_seen,
    guest_uuid,
    landed,
)
from vagoth.actions.observe import vm_state
from vagoth.actions.recovery import settle, settle_despite_cancel
from vagoth.allocator import Allocator
from vagoth.drivers.base import Session
from vagoth.errors import (
    Claimed,
    HostError,
    InvalidInput,
    JobFailed,
    OutcomeUnknown,
    StaleRevision,
    VagothError,
)
from vagoth.model import Record, State, guest_uuid_of
from vagoth.scheduler import Job
from vagoth.view import View


class MachineAction(Action):
    """A verb on a VM: holds its lock, and first finishes what another process left half-way.

    :param wait_s: how long to wait for another process that works on the VM
    """

    def __init__(self, node_id: str, *, wait_s: float = 0.0) -> None:
        super().__init__(node_id)
        self.wait_s = wait_s

    async def run(self, context: Context, job: Job) -> Any:
        try:
            return await self._run_locked(context, job)
        except VagothError as error:
            # Hosts know guests by their UUIDs, people by their names.
            record = context.view.get(self.node_id)
            if record is not None and (uuid := guest_uuid_of(record)) is not None:
                error.say_instead(uuid, record.name)
            raise

    async def _run_locked(self, context: Context, job: Job) -> Any:
        async with context.registry.lock(self.node_id, wait_s=self.wait_s):
            # Its last holder's commits may not have come in by themselves yet.
            await context.registry.refresh()
            while True:
                record = context.record(self.node_id)
                if record.intent is not None:
                    job.report(f"finding out what became of {record.intent.action}")
                    record = await settle(context, self.node_id)
                self.plan(context.view, context.allocator)
                try:
                    return await self.execute(context, job, record)
                except StaleRevision:
                    # Nothing was begun: the monitor, or a rename, came before the intent.
                    continue

    @abstractmethod
    async def execute(self, context: Context, job: Job, record: Record) -> Any:
        """Do it, under the lock, on a record that nobody else works on."""

    def record(self, view: View) -> Record:
        """The VM's record. :raises InvalidInput: the node is no VM."""
        record = view.get(self.node_id) or view.find(self.node_id)
        guest_uuid(record)
        return record


class Attempt:
    """Tells whether any call that changes a host has gone out since the intent was written."""

    def __init__(self) -> None:
        self.touched = False


@asynccontextmanager
async def settling(context: Context, job: Job, node_id: str) -> AsyncIterator[Attempt]:
    """What begins with the writing of an intent: if it fails, find out what is true, then raise.

    Where hosts do not answer, the intent stays and the state is ``unknown``.
    """
    attempt = Attempt()
    try:
        yield attempt
    except BaseException as error:
        record = context.record(node_id)
        if record.intent is None:
            raise
        if isinstance(error, HostError | JobFailed | InvalidInput) and not attempt.touched:
            await context.put(taken_back(record))
            raise
        job.report("finding out what is true")
        try:
            record = await settle_despite_cancel(context, node_id)
        except OutcomeUnknown as doubt:
            job.note(doubt.message)
            raise error from doubt
        host = context.view.name_of(record.parent) or "no host"
        job.note(f"{record.name} is {record.state} on {host}")
        raise


def taken_back(record: Record) -> Record:
    """The record as it was before an action that touched no host."""
    intent = record.intent
    if intent is None:
        return record
    claimed = bool(intent.args.get("claimed"))
    return replace(
        record,
        state=intent.args.get("state", record.state),
        parent=None if claimed else record.parent,
        intent=None,
    )


async def true_state(context: Context, session: Session, record: Record) -> Record:
    """Write down what the host says of the VM now; the record is then at rest, without intent.

    Where no intent of ours keeps others away, and they wrote of its state or place meanwhile,
    theirs stands.
    """
    generation = context.view.generation
    guest = await session.guest(guest_uuid(record))
    state = vm_state(record.state, guest)
    if record.intent is not None:
        return await context.put(replace(record, state=state, intent=None))

    def find() -> list[Record]:
        now = context.record(record.id)
        is_newer = context.view.touched(record.id) > generation
        return [] if is_newer or now.state == state else [replace(now, state=state)]

    await commit_seen(context.registry, find)
    return context.record(record.id)


def refuse_alarmed(view: View, record: Record) -> None:
    """Refuse what would have a VM run that was found on two hosts. :raises Claimed: it was."""
    if record.alarm is None:
        return
    hosts = [view.name_of(id) or id for id in record.metadata.get("duplicate_on", ())]
    raise Claimed(
        f"{record.name} was found on {', '.join(hosts)} besides {view.name_of(record.parent)}",
        holder=", ".join(hosts),
        cure="stop it where it should not be, then poll",
    )


def placed(record: Record, verb: str) -> str:
    """The id of the VM's host. :raises JobFailed: it is on none."""
    if record.parent is None:
        raise JobFailed(f"{record.name} is on no host, so there is nothing to {verb}")
    return record.parent


class PowerAction(MachineAction):
    """A verb that is a single call to the VM's host. What it left is asked, then written down."""

    text: ClassVar[str]
    #: What the state then is; nothing: it stays.
    becomes: ClassVar[State | None] = None
    #: The state while it is under way; nothing: it stays.
    meanwhile: ClassVar[State | None] = None
    #: The states in which there is nothing to do.
    idle: ClassVar[tuple[str, ...]] = ()

    def plan(self, view: View, allocator: Allocator) -> Plan:
        record = self.record(view)
        if record.parent is None and State.NEW in self.idle:
            return Plan(self.verb, record.name, notes=(f"{record.name} is on no host",))
        host = view.name_of(placed(record, self.verb))
        changes = {}
        if self.becomes is not None and record.state != self.becomes:
            changes["state"] = (record.state, self.becomes)
        return Plan(self.verb, record.name, (Step(self.text, host),), changes)

    async def execute(self, context: Context, job: Job, record: Record) -> None:
        if record.parent is None and State.NEW in self.idle:
            job.note(f"{record.name} is on no host")
            return
        host_id = placed(record, self.verb)
        before = record.state
        guest = await context.ask(host_id, guest_uuid(record))
        if guest is not None and vm_state(before, guest) == self.becomes:
            async with context.session(host_id) as session:
                await true_state(context, session, record)
            job.note(f"{record.name} is {self.becomes} already")
            return
        args = {"host": host_id, "state": before}
        async with settling(context, job, self.node_id) as attempt:
            state = self.meanwhile or before
            record = await context.intend(record, self.verb, args=args, state=state)
            async with context.session(host_id) as session:
                attempt.touched = True
                job.report(self.text)
                await landed(self.call(session, guest_uuid(record)))
                await true_state(context, session, replace(record, state=before))

    @abstractmethod
    async def call(self, session: Session, uuid: str) -> None:
        """The call to the host."""


class Stop(PowerAction):
    """Pull the plug."""

    verb = "stop"
    text = "pull the plug"
    becomes = State.STOPPED
    meanwhile = State.STOPPING
    idle = (State.NEW,)

    async def call(self, session: Session, uuid: str) -> None:
        await session.stop(uuid)


class Reboot(PowerAction):
    """Ask the guest to reboot."""

    verb = "reboot"
    text = "ask the guest to reboot"

    async def call(self, session: Session, uuid: str) -> None:
        await session.reboot(uuid)


class Pause(PowerAction):
    """Freeze the guest in memory."""

    verb = "pause"
    text = "freeze the guest in memory"
    becomes = State.PAUSED

    async def call(self, session: Session, uuid: str) -> None:
        await session.pause(uuid)


class Resume(PowerAction):
    """Let a paused guest go on."""

    verb = "resume"
    text = "let the guest go on"
    becomes = State.RUNNING

    def plan(self, view: View, allocator: Allocator) -> Plan:
        refuse_alarmed(view, self.record(view))
        return super().plan(view, allocator)

    async def call(self, session: Session, uuid: str) -> None:
        await session.resume(uuid)


class Shutdown(MachineAction):
    """Ask the guest to power off, and wait until it has.

    :param grace_s: how long it may take; the cluster's default if not given
    """

    verb = "shutdown"

    def __init__(self, node_id: str, *, grace_s: float | None = None, wait_s: float = 0.0) -> None:
        super().__init__(node_id, wait_s=wait_s)
        if grace_s is not None and not 0 < grace_s <= 86400:
            raise InvalidInput("grace_s", grace_s, "seconds above 0 and up to a day")
        self.grace_s = grace_s

    def plan(self, view: View, allocator: Allocator) -> Plan:
        record = self.record(view)
        if record.parent is None:
            return Plan(self.verb, record.name, notes=(f"{record.name} is on no host",))
        step = Step("ask the guest to power off, and wait", view.name_of(record.parent))
        changes = {}
        if record.state not in (State.STOPPED, State.DEFINED):
            changes["state"] = (record.state, State.STOPPED)
        return Plan(self.verb, record.name, (step,), changes)

    async def execute(self, context: Context, job: Job, record: Record) -> None:
        if record.parent is None:
            job.note(f"{record.name} is on no host")
            return
        grace_s = self.grace_s if self.grace_s is not None else context.shutdown_grace_s
        await context.ask(record.parent, guest_uuid(record))
        args = {"host": record.parent, "state": record.state}
        async with settling(context, job, self.node_id) as attempt:
            record = await context.intend(record, self.verb, args=args, state=State.STOPPING)
            # Waiting for a guest takes no place from those who have something to do.
            async with context.session(args["host"], waits=False) as session:
                attempt.touched = True
                job.report(f"waiting up to {grace_s:g} s for the guest to power off")
                await session.shutdown(guest_uuid(record), grace_s=grace_s)
                await true_state(context, session, replace(record, state=args["state"]))
