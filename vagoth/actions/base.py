"""The action contract: planned from the view without I/O, then run as a job.

An action on a node holds that node's lock while it runs. If it has more than one step it
writes an intent first; found on a node whose lock is free, the intent says that its owner died
half-way, and :mod:`vagoth.actions.recovery` finds out what is true.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar
from weakref import WeakSet

from msgspec.structs import replace

from vagoth.actions.lastlooks import LastLooks
from vagoth.actions.observe import host_down, identity_problem
from vagoth.allocator import Allocator
from vagoth.definition import VMDefinition, convert
from vagoth.drivers.base import Guest, GuestSpec, Host, Session
from vagoth.drivers.sessions import Sessions
from vagoth.errors import (
    HostError,
    HostUnreachable,
    InvalidInput,
    OutcomeUnknown,
    StaleRevision,
    Taken,
    VagothError,
)
from vagoth.model import Holder, Intent, Put, Record, State, guest_uuid_of
from vagoth.registry.base import Registry
from vagoth.scheduler import Job, Scheduler
from vagoth.transaction import current, user_name
from vagoth.view import View

log = logging.getLogger(__name__)
T = TypeVar("T")

#: What is locked while a host is claimed: no id of a node can hold an asterisk.
CLAIMS = "claims*"
#: How long to wait while others claim.
CLAIM_WAIT_S = 10.0
#: How long a cancelled action waits for a call that was already sent to a host.
LANDING_S = 5.0


@dataclass(frozen=True)
class Step:
    """One step of a plan, in words; ``host`` is the name of the host it touches, if any."""

    text: str
    host: str | None = None


@dataclass(frozen=True)
class Plan:
    """What an action would do now: shown by ``--dry-run``.

    ``changes`` holds each field of the record that would differ: before and after.
    """

    action: str
    node: str
    steps: tuple[Step, ...] = ()
    changes: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of the hosts it would touch, in order."""
        return tuple(dict.fromkeys(step.host for step in self.steps if step.host))


@dataclass
class Context:
    """What actions run with: the cluster's parts, and the few things they all do.

    ``looks`` remembers when each host was last looked at.
    """

    registry: Registry
    sessions: Sessions
    scheduler: Scheduler
    allocator: Allocator
    looks: LastLooks
    connect_timeout_s: float = 10.0
    shutdown_grace_s: float = 120.0
    _claims: asyncio.Lock = field(default_factory=asyncio.Lock)
    _identified: WeakSet[Session] = field(default_factory=WeakSet)

    @property
    def view(self) -> View:
        """The registry's view."""
        return self.registry.view

    def record(self, node_id: str) -> Record:
        """The record as it is now. :raises NodeNotFound: it is gone."""
        return self.view.get(node_id) or self.view.find(node_id)

    @asynccontextmanager
    async def session(self, host_id: str, *, waits: bool = True) -> AsyncIterator[Session]:
        """The host's session, within the bound on jobs for one host.

        A host that cannot be used is marked unreachable, and its error goes on.

        :param waits: false for what only looks, or itself waits for long: it takes no place
        """
        host = hypervisor(self.record(host_id))
        async with self.scheduler.slots([host_id] if waits else []):
            try:
                session = await self.sessions.get(host)
                await self.identify(session)
                yield session
            except HostError as error:
                await mark_down(self.registry, host_id, error)
                raise

    async def identify(self, session: Session) -> None:
        """Make sure, once for each session, that it leads to the machine that is meant.

        :raises HostError: another machine answers than before, or than this node should be
        """
        if session in self._identified:
            return
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                facts = await session.facts()
        except TimeoutError:
            raise HostUnreachable(
                session.host.name, f"no answer within {self.connect_timeout_s:g} s"
            ) from None
        problem = identity_problem(self.view, session.host.id, facts)
        if problem is not None:
            raise problem
        self._identified.add(session)

    async def ask(self, host_id: str, uuid: str) -> Guest | None:
        """What the host says of a guest, now, and soon: a host that hangs is found out here.

        :raises HostUnreachable: no answer within the time that a host has to connect
        """
        async with self.session(host_id, waits=False) as session:
            try:
                async with asyncio.timeout(self.connect_timeout_s):
                    return await session.guest(uuid)
            except TimeoutError:
                raise HostUnreachable(
                    session.host.name, f"no answer within {self.connect_timeout_s:g} s"
                ) from None

    async def put(self, record: Record) -> Record:
        """Commit a changed record; return it as committed.

        For what the holder of the node lock writes. If others wrote other fields since the
        record was read (a name, a tag), the change is made anew on what they wrote.
        """
        while True:
            try:
                await self.registry.commit([Put(record)], expect={record.id: record.revision})
            except StaleRevision:
                owned = {name: getattr(record, name) for name in _OWNED_BY_ACTIONS}
                record = replace(self.record(record.id), **owned)
            else:
                return self.record(record.id)

    @asynccontextmanager
    async def claiming(self) -> AsyncIterator[None]:
        """One placement at a time, in all processes, on the newest view; held for milliseconds.

        Two VMs that fit a host each, and not together, must not both be placed there.
        """
        async with self._claims, self.registry.lock(CLAIMS, wait_s=CLAIM_WAIT_S):
            await self.registry.refresh()
            yield

    async def intend(
        self, record: Record, action: str, *, args: Mapping[str, str], **fields: Any
    ) -> Record:
        """Write down what is about to be done, and change ``fields`` in the same commit.

        Unlike :meth:`put` this is where the action decides: it fails if anything changed.

        :raises StaleRevision: the record is no longer what the decision was made on
        """
        intent = Intent(
            action=action,
            txid=tx.id if (tx := current()) else "",
            since=time.time(),
            owner=this_process(),
            args=dict(args),
        )
        changed = replace(record, intent=intent, **fields)
        await self.registry.commit([Put(changed)], expect={record.id: record.revision})
        return self.record(record.id)


_OWNED_BY_ACTIONS = ("state", "parent", "intent", "applied", "alarm")


class Action(ABC):
    """One verb on one node."""

    verb: ClassVar[str]
    #: Whether it waits until earlier jobs of its node are over.
    in_order: ClassVar[bool] = True

    def __init__(self, node_id: str) -> None:
        self.node_id = node_id

    @abstractmethod
    def plan(self, view: View, allocator: Allocator) -> Plan:
        """What would be done, from the view alone; pure.

        :raises VagothError: it is refused, and nothing would be done
        """

    @abstractmethod
    async def run(self, context: Context, job: Job) -> Any:
        """Do it. Each step may be repeated safely."""


def hypervisor(record: Record) -> Host:
    """The record as a host for drivers.

    :raises InvalidInput: the node is no hypervisor
    """
    if record.type != "hv" and "driver" not in record.definition:
        raise InvalidInput(
            "host", record.name, f"a hypervisor, and {record.name} is a {record.type}"
        )
    return Host(record.id, record.name, record.definition)


def hypervisors(view: View) -> list[Record]:
    """All hypervisors, by name."""
    return view.select(type="hv")


def guest_uuid(record: Record) -> str:
    """The UUID by which hosts know the guest of a VM."""
    uuid = guest_uuid_of(record)
    if uuid is None:
        raise InvalidInput("node", record.name, f"a VM, and {record.name} is a {record.type}")
    return uuid


def guest_spec(record: Record) -> GuestSpec:
    """The VM as a driver defines it."""
    return GuestSpec(
        guest_uuid(record), record.name, record.id, convert(record.definition, VMDefinition)
    )


def this_process() -> Holder:
    """This process, as holder of what it is about to do."""
    tx = current()
    return Holder(
        process=os.getpid(),
        machine=socket.gethostname(),
        user=user_name(),
        source=tx.source if tx else "",
        txid=tx.id if tx else "",
        since=time.time(),
    )


async def mark_down(registry: Registry, host_id: str, error: HostError) -> None:
    """Mark a host unreachable, and its VMs' states unknown; they keep their claims."""
    await commit_seen(registry, lambda: host_down(registry.view, host_id, error))


async def commit_seen(registry: Registry, find: Callable[[], Iterable[Record]]) -> int:
    """Commit what was seen on hosts: the records that ``find`` returns, from the newest view.

    :param find: pure; called anew when somebody else wrote one of the records first
    :return: how many records changed
    """
    for _ in range(20):
        records = list(find())
        if not records:
            return 0
        try:
            for start in range(0, len(records), registry.max_changes):
                part = records[start : start + registry.max_changes]
                await registry.commit(
                    [Put(record) for record in part],
                    expect={record.id: record.revision for record in part},
                )
        except (StaleRevision, Taken):
            # Taken: another process has just met the same machine under another name.
            continue
        return len(records)
    log.warning("what was seen on hosts could not be written: others write too fast")
    return 0


async def landed(call: Awaitable[T]) -> T:
    """Await a call to a host that, once sent, cannot be taken back.

    Cancelled meanwhile, it is given a few seconds to end, so that its outcome is known.
    """
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            await asyncio.wait([task], timeout=LANDING_S)
        if task.done() and not task.cancelled():
            task.exception()
        else:
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        raise


async def together(
    calls: Mapping[str, Awaitable[T]], *, within_s: float
) -> dict[str, T | VagothError]:
    """Await several calls at once; what has no answer within the time is OutcomeUnknown."""
    tasks = {name: asyncio.ensure_future(call) for name, call in calls.items()}
    if tasks:
        try:
            await asyncio.wait(tasks.values(), timeout=within_s)
        finally:
            for task in tasks.values():
                task.cancel()
    outcomes: dict[str, T | VagothError] = {}
    for name, task in tasks.items():
        try:
            outcomes[name] = await task
        except VagothError as error:
            outcomes[name] = error
        except asyncio.CancelledError:
            outcomes[name] = OutcomeUnknown(f"no answer within {within_s:g} s")
    return outcomes


def settled_state(state: str) -> str:
    """The state that a VM at rest was in when an action began on it."""
    return State.STOPPED if state in (State.STARTING, State.STOPPING, State.MIGRATING) else state
