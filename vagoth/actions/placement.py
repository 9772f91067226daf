"""Actions that put a VM on a host, take it off, or move it: start, define, undefine, migrate."""

from __future__ import annotations

from msgspec.structs import replace

from vagoth.actions.base import (
    Context,
    Plan,
    Step,
    guest_spec,
    guest_uuid,
    hypervisor,
    hypervisors,
    landed,
    together,
)
from vagoth.actions.look import look_at
from vagoth.actions.machine import (
    Attempt,
    MachineAction,
    placed,
    refuse_alarmed,
    settling,
    true_state,
)
from vagoth.actions.observe import active
from vagoth.allocator import Allocator, Placement, facts_of
from vagoth.drivers.base import MigrationProgress, Power, Session
from vagoth.errors import (
    Claimed,
    HostError,
    HostUnreachable,
    InUse,
    InvalidInput,
    JobFailed,
    NoHostFits,
    VagothError,
)
from vagoth.model import Record, State, digest
from vagoth.scheduler import Job
from vagoth.view import View

#: How long hosts that might have the guest are given to say so, before a start.
GUARD_S = 2.0


class Define(MachineAction):
    """Claim a host for the VM and make the VM known there, off; or bring it up to date there.

    :param on: id of the host it must be; without it the allocator picks one
    """

    verb = "define"

    def __init__(self, node_id: str, *, on: str | None = None, wait_s: float = 0.0) -> None:
        super().__init__(node_id, wait_s=wait_s)
        self.on = on

    def plan(self, view: View, allocator: Allocator) -> Plan:
        record = self.record(view)
        guest_spec(record)
        refuse_alarmed(view, record)
        if record.parent is not None:
            self._check_elsewhere(view, record)
            steps = (self._define_step(view.name_of(record.parent)),)
            return Plan(self.verb, record.name, steps)
        placement = place(view, allocator, record, self.on)
        host = placement.host
        return Plan(
            self.verb,
            record.name,
            (Step(f"claim {host.name} ({placement.why})"), self._define_step(host.name)),
            {"parent": (None, host.name), "state": (record.state, State.DEFINED)},
            tuple(f"not {name}: {why}" for name, why in placement.others.items()),
        )

    def _define_step(self, host: str | None) -> Step:
        return Step("define the guest", host)

    def _check_elsewhere(self, view: View, record: Record) -> None:
        if self.on is not None and record.parent != self.on:
            holder = view.name_of(record.parent) or ""
            verb = "runs" if record.state in (State.RUNNING, State.PAUSED) else "is placed"
            raise Claimed(
                f"{record.name} {verb} on {holder}",
                holder=holder,
                cure=f"migrate {record.name} while it runs, or stop and undefine it first",
            )

    async def execute(self, context: Context, job: Job, record: Record) -> None:
        if record.parent is not None:
            async with context.session(record.parent) as session:
                job.report("defining the guest")
                await self._apply(context, session, record)
            return
        async with settling(context, job, self.node_id) as attempt:
            record = await self.claim(context, job, record, state=record.state)
            async with context.session(placed(record, self.verb)) as session:
                await define(job, session, record, attempt)
            await context.put(
                replace(record, state=State.DEFINED, intent=None, applied=digest(record))
            )

    async def _apply(self, context: Context, session: Session, record: Record) -> None:
        await landed(session.define(guest_spec(record)))
        applied = digest(record)
        record = await true_state(context, session, record)
        if record.state not in (State.RUNNING, State.PAUSED):
            # What runs keeps what it has until it is next started.
            await context.put(replace(record, applied=applied))

    async def claim(self, context: Context, job: Job, record: Record, *, state: str) -> Record:
        """Pick a host, have an answer from it, claim it, and write down what is about to be done.

        A host that gives no answer is not claimed. Others may claim meanwhile what was free when
        the host was picked: then another is picked.

        :param state: the VM's state from the claim on
        :return: the record with the claim and the intent, written in one commit
        """
        await know_hosts(context, job, self.on)
        answered: set[str] = set()
        while True:
            picked = (await self._pick(context, job, record)).host.id
            while picked not in answered:
                try:
                    await context.ask(picked, guest_uuid(record))
                except HostError:
                    # Marked unreachable by now: another one is picked, if any will do.
                    if self.on is not None:
                        raise
                    picked = (await self._pick(context, job, record)).host.id
                else:
                    answered.add(picked)
            async with context.claiming():
                placement = place(context.view, context.allocator, record, self.on)
                if placement.host.id in answered:
                    args = {"host": placement.host.id, "state": record.state, "claimed": "yes"}
                    claimed = await context.intend(
                        record, self.verb, args=args, parent=placement.host.id, state=state
                    )
                    job.note(f"on {placement.host.name}: {placement.why}")
                    return claimed

    async def _pick(self, context: Context, job: Job, record: Record) -> Placement:
        try:
            return place(context.view, context.allocator, record, self.on)
        except NoHostFits:
            lost = context.view.select(type="hv", state=State.UNREACHABLE)
            if not lost or self.on is not None:
                raise
            job.report("looking whether a host is back")
            await look_at(context, lost)
            return place(context.view, context.allocator, record, self.on)


class Start(Define):
    """Start the VM where it is; or claim a host for it, define it there, and start it."""

    verb = "start"

    def plan(self, view: View, allocator: Allocator) -> Plan:
        record = self.record(view)
        plan = super().plan(view, allocator)
        host = view.name_of(record.parent) if record.parent else plan.hosts[-1]
        if record.state == State.RUNNING:
            return Plan(self.verb, record.name, notes=(f"{record.name} runs on {host}",))
        steps = (
            *(step for step in plan.steps if step.host is None),
            Step("ask the hosts that may have it whether it runs there"),
            *(step for step in plan.steps if step.host is not None),
            Step("start the guest", host),
        )
        changes = {**plan.changes, "state": (record.state, State.RUNNING)}
        return Plan(self.verb, record.name, steps, changes, plan.notes)

    async def execute(self, context: Context, job: Job, record: Record) -> None:
        if record.parent is not None and await self._runs_already(context, job, record):
            return
        record = context.record(self.node_id)
        async with settling(context, job, self.node_id) as attempt:
            if record.parent is None:
                record = await self.claim(context, job, record, state=State.STARTING)
            else:
                args = {"host": record.parent, "state": record.state}
                record = await context.intend(record, self.verb, args=args, state=State.STARTING)
            host_id = placed(record, self.verb)
            await ask_others(context, job, record, host_id)
            async with context.session(host_id) as session:
                await define(job, session, record, attempt)
                job.report("starting the guest")
                await landed(session.start(guest_uuid(record)))
            await context.put(
                replace(record, state=State.RUNNING, intent=None, applied=digest(record))
            )

    async def _runs_already(self, context: Context, job: Job, record: Record) -> bool:
        host_id = placed(record, self.verb)
        guest = await context.ask(host_id, guest_uuid(record))
        if not active(guest):
            return False
        async with context.session(host_id) as session:
            await true_state(context, session, record)
        if guest is not None and guest.power is Power.PAUSED:
            raise JobFailed(f"{record.name} is paused", cure=f"resume {record.name}")
        job.note(f"{record.name} runs on {context.view.name_of(record.parent)} already")
        return True


class Undefine(MachineAction):
    """Take the VM, which is off, from its host, keeping its disks; the claim is given up."""

    verb = "undefine"

    def plan(self, view: View, allocator: Allocator) -> Plan:
        record = self.record(view)
        if record.parent is None:
            return Plan(self.verb, record.name, notes=(f"{record.name} is on no host",))
        host = view.name_of(record.parent)
        if record.state in (State.RUNNING, State.PAUSED):
            raise InUse(
                f"{record.name} is {record.state} on {host}",
                holder=host or "",
                cure=f"stop {record.name} first",
            )
        return Plan(
            self.verb,
            record.name,
            (Step("make the host forget the guest", host), Step(f"give up the claim on {host}")),
            {"parent": (host, None), "state": (record.state, State.NEW)},
        )

    async def execute(self, context: Context, job: Job, record: Record) -> None:
        if record.parent is None:
            job.note(f"{record.name} is on no host")
            return
        host_id = record.parent
        if active(await context.ask(host_id, guest_uuid(record))):
            async with context.session(host_id) as session:
                await true_state(context, session, record)
            host = context.view.name_of(host_id) or ""
            raise InUse(
                f"{record.name} runs on {host}", holder=host, cure=f"stop {record.name} first"
            )
        args = {"host": host_id, "state": record.state}
        async with settling(context, job, self.node_id) as attempt:
            record = await context.intend(record, self.verb, args=args)
            async with context.session(host_id) as session:
                job.report("making the host forget the guest")
                attempt.touched = True
                await landed(session.undefine(guest_uuid(record)))
            await context.put(
                replace(record, parent=None, state=State.NEW, intent=None, applied="", alarm=None)
            )


class Migrate(MachineAction):
    """Move the VM, while it runs, to another host.

    :param host: id of the host to move to
    """

    verb = "migrate"

    def __init__(self, node_id: str, *, host: str, wait_s: float = 0.0) -> None:
        super().__init__(node_id, wait_s=wait_s)
        self.target = host

    def plan(self, view: View, allocator: Allocator) -> Plan:
        record = self.record(view)
        refuse_alarmed(view, record)
        source = view.find(placed(record, self.verb))
        target = view.find(self.target)
        hypervisor(target)
        if source.id == target.id:
            return Plan(self.verb, record.name, notes=(f"{record.name} is on {target.name}",))
        if record.state not in (State.RUNNING, State.UNKNOWN, State.PAUSED):
            raise JobFailed(
                f"{record.name} is {record.state}, and only what runs can migrate",
                cure=f"undefine {record.name}, then start it with --on {target.name}",
            )
        if source.definition.get("driver") != target.definition.get("driver"):
            raise InvalidInput("host", target.name, f"a host with the driver of {source.name}")
        placement = place(view, allocator, replace(record, parent=None), target.id)
        return Plan(
            self.verb,
            record.name,
            (
                Step("copy the guest's memory while it runs, then switch over", source.name),
                Step(f"take over the guest ({placement.why})", target.name),
                Step(f"move the claim from {source.name} to {target.name}"),
            ),
            {"parent": (source.name, target.name)},
        )

    async def execute(self, context: Context, job: Job, record: Record) -> None:
        source_id = placed(record, self.verb)
        if source_id == self.target:
            job.note(f"{record.name} is on {context.view.name_of(self.target)} already")
            return
        await know_hosts(context, job, self.target)
        self.plan(context.view, context.allocator)
        if not active(await context.ask(source_id, guest_uuid(record))):
            async with context.session(source_id) as source:
                record = await true_state(context, source, record)
            raise JobFailed(f"{record.name} does not run on {source.host.name}")
        await context.ask(self.target, guest_uuid(record))
        args = {"host": source_id, "target": self.target, "state": record.state}
        async with settling(context, job, self.node_id) as attempt:
            record = await context.intend(record, self.verb, args=args, state=State.MIGRATING)
            await self._move(context, job, record, source_id, attempt)

    async def _move(
        self, context: Context, job: Job, record: Record, source_id: str, attempt: Attempt
    ) -> None:
        def progress(now: MigrationProgress) -> None:
            done = now.total_bytes - now.remaining_bytes
            job.report("copying memory", done / now.total_bytes if now.total_bytes else None)

        job.report("connecting both hosts")
        view = context.view
        async with context.scheduler.slots([source_id, self.target]):
            source = await context.sessions.get(hypervisor(view.find(source_id)))
            target = await context.sessions.get(hypervisor(view.find(self.target)))
            attempt.touched = True
            await source.migrate(guest_uuid(record), target, progress=progress)
            guest = await target.guest(guest_uuid(record))
        paused = guest is not None and guest.power is Power.PAUSED
        state = State.PAUSED if paused else State.RUNNING
        await context.put(replace(record, parent=self.target, state=state, intent=None))


def place(view: View, allocator: Allocator, record: Record, on: str | None) -> Placement:
    """The host for a VM that has none.

    :param on: the id of the only host that will do
    """
    if on is None:
        return allocator.place(view, record, hypervisors(view))
    host = view.find(on)
    hypervisor(host)
    # Whether the host that was asked for can be reached is found out by trying.
    return allocator.place(view, record, [replace(host, state=State.UP)])


async def define(job: Job, session: Session, record: Record, attempt: Attempt) -> None:
    """Have the guest defined, and remember whether the host was touched at all."""
    job.report("defining the guest")
    try:
        await landed(session.define(guest_spec(record)))
    except (HostError, InvalidInput):
        raise
    except BaseException:
        attempt.touched = True
        raise
    attempt.touched = True


async def know_hosts(context: Context, job: Job, on: str | None) -> None:
    """Meet the hosts that were never seen, as what they have decides where a VM fits.

    One that cannot be met is marked so; the others go on. The host that was asked for by name
    is met again if it was out of reach: it may be back.

    :raises HostError: the host that was asked for is still out of reach
    """
    candidates = [context.record(on)] if on is not None else hypervisors(context.view)
    unmet = [
        host
        for host in candidates
        if facts_of(host) is None or (on is not None and host.state != State.UP)
    ]
    if not unmet:
        return
    job.report(f"meeting {len(unmet)} hosts" if len(unmet) > 1 else f"meeting {unmet[0].name}")
    for look in await look_at(context, unmet):
        if look.error is not None and on is not None:
            raise look.error


async def ask_others(context: Context, job: Job, record: Record, target_id: str) -> None:
    """Ask all other hosts, at once, whether they have the guest; those without an answer are named.

    The claim is the guard against other controllers; this one is against what was done behind
    its back, at any time: a look, however fresh, is older than now.

    :raises Claimed: it runs on one of them
    :raises HostUnreachable: its own host has lost it, and one that carried it before is silent
    """
    uuid = guest_uuid(record)
    names = {host.id: host.name for host in hypervisors(context.view) if host.id != target_id}
    job.report(f"asking {len(names)} other hosts whether it runs there")
    asked = {host_id: context.ask(host_id, uuid) for host_id in names}
    answers = await together(asked, within_s=GUARD_S)
    for host_id, said in answers.items():
        if not isinstance(said, VagothError) and active(said):
            raise Claimed(
                f"{record.name} runs on {names[host_id]}, and the claim is on another host",
                holder=names[host_id],
                cure=f"poll {names[host_id]} to follow it there",
            )
    silent = [host_id for host_id, said in answers.items() if isinstance(said, VagothError)]
    was_lost = record.intent is not None and record.intent.args.get("state") == State.MISSING
    if was_lost and (suspects := [host_id for host_id in silent if host_id in record.former]):
        raise HostUnreachable(
            names[suspects[0]],
            f"it carried {record.name} before, which its host has lost, and does not say whether"
            " it runs there",
            cure=f"bring it back, or undefine {record.name} if it is gone for good",
        )
    if silent:
        shown = ", ".join(names[host_id] for host_id in silent)
        job.note(f"did not say whether they have it: {shown}")
