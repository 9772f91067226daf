"""The monitor: keeps what the registry says of hosts and guests true.

A poll looks at all hosts at once, one bulk call each. Following a host means to listen to its
events, look at it in full when the connection is made and every so often, and to connect again
with growing pauses when it is lost. Both only write what differs.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from vagoth.actions.base import Context, commit_seen, hypervisor, hypervisors
from vagoth.actions.look import look_at
from vagoth.actions.observe import Look, active, guests_seen, overtaken, strangers
from vagoth.actions.recovery import settle
from vagoth.drivers.base import Capability, Driver, Guest, GuestEvent, Session
from vagoth.errors import Busy, HostError, NodeNotFound, OutcomeUnknown, VagothError
from vagoth.model import Commit, Record
from vagoth.transaction import transaction

log = logging.getLogger(__name__)

SOURCE = "monitor"
RECONNECT_FIRST_S = 1.0
RECONNECT_LAST_S = 30.0


@dataclass(frozen=True)
class HostReport:
    """What one poll found at one host. ``strangers`` are guests that the registry does not know."""

    host: Record
    took_s: float
    guests: int
    strangers: Sequence[Guest]
    error: HostError | None


class Monitor:
    """Polls, and follows hosts while anybody wants it to.

    :param driver: gives the driver of a name
    :param interval_s: a full look at each followed host this often
    """

    def __init__(
        self, context: Context, driver: Callable[[str], Driver], *, interval_s: float = 60.0
    ) -> None:
        self._context = context
        self._driver = driver
        self._interval_s = interval_s
        self._wanted = 0
        self._followers: dict[str, asyncio.Task[None]] = {}
        self._followed: dict[str, Record] = {}
        self._changed = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._unlisten: Callable[[], None] | None = None
        self._met: dict[str, asyncio.Event] = {}

    @property
    def is_following(self) -> bool:
        """Whether hosts are followed now."""
        return self._main is not None

    async def poll(self, hosts: Sequence[Record] | None = None) -> list[HostReport]:
        """Look at these hosts, or all, at once; write down what differs; finish what died.

        :return: a report for each host, in order; a host in trouble is one with an ``error``
        """
        hosts = hypervisors(self._context.view) if hosts is None else list(hosts)
        for host in hosts:
            hypervisor(host)
        with transaction(source=SOURCE, reason="poll"):
            looks = await look_at(self._context, hosts)
            await self._finish_the_dead(looks)
        view = self._context.view
        return [
            HostReport(
                view.get(host.id) or host,
                look.took_s,
                len(look.guests or ()),
                strangers(view, look),
                look.error,
            )
            for host, look in zip(hosts, looks, strict=True)
        ]

    def start(self) -> None:
        """Follow all hosts, those to come too. Each start wants one stop."""
        self._wanted += 1
        if self._main is None:
            self._unlisten = self._context.registry.listen(self._on_commit)
            self._follow_those_there_are()
            self._main = asyncio.create_task(self._keep_following(), name="monitor")

    async def stop(self) -> None:
        """Take one start back; with the last, stop following."""
        self._wanted = max(0, self._wanted - 1)
        if self._wanted == 0:
            await self.close()

    async def close(self) -> None:
        """Stop following, whoever wanted it."""
        self._wanted = 0
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None
        tasks = [*self._followers.values(), *([self._main] if self._main else ())]
        self._followers.clear()
        self._followed.clear()
        self._met.clear()
        self._main = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def met(self) -> None:
        """Wait until each followed host was looked at once, or found to be in trouble."""
        await asyncio.gather(*(event.wait() for event in tuple(self._met.values())))

    def _on_commit(self, commit: Commit) -> None:
        if any(change.record.type == "hv" for change in commit.changes):
            self._changed.set()

    async def _keep_following(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._follow_those_there_are()

    def _follow_those_there_are(self) -> None:
        wanted = {host.id: host for host in hypervisors(self._context.view)}
        for host_id, host in list(self._followed.items()):
            now = wanted.get(host_id)
            if now is None or now.definition != host.definition:
                self._followers.pop(host_id).cancel()
                self._met.pop(host_id).set()
                del self._followed[host_id]
        for host_id, host in wanted.items():
            if host_id not in self._followed:
                self._followed[host_id] = host
                self._met[host_id] = asyncio.Event()
                self._followers[host_id] = asyncio.create_task(
                    self._follow(host_id), name=f"follow {host.name}"
                )

    async def _follow(self, host_id: str) -> None:
        pause_s = RECONNECT_FIRST_S
        while (host := self._context.view.get(host_id)) is not None:
            begun = time.monotonic()
            try:
                await self._follow_session(host)
            except VagothError as error:
                log.debug("%s: followed no more: %s", host.name, error)
            except Exception:
                # One host's trouble stays its own, ours with it too.
                log.exception("%s: following it failed", host.name)
            self._has_met(host_id)
            if time.monotonic() - begun > RECONNECT_LAST_S:
                pause_s = RECONNECT_FIRST_S
            # Not all at once, when a switch took many hosts with it.
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(pause_s * 2, RECONNECT_LAST_S)

    async def _follow_session(self, host: Record) -> None:
        look = await self._look(host)
        if look.error is not None:
            raise look.error
        session = await self._context.sessions.get(hypervisor(host))
        driver = self._driver(str(host.definition.get("driver")))
        if Capability.EVENTS not in driver.capabilities:
            self._has_met(host.id)
            await self._look_now_and_then(host)
            return
        async with session.events() as events, asyncio.TaskGroup() as group:
            # What happened between the look and the subscription is in no event.
            await self._look(host)
            self._has_met(host.id)
            tasks = {group.create_task(self._look_now_and_then(host))}
            try:
                async for event in events:
                    vm = self._context.view.by_key(f"uuid:{event.uuid}")
                    if vm is not None and vm.intent is not None:
                        later = self._after_action(host, session, event, vm.id)
                        tasks.add(group.create_task(later))
                    else:
                        await self._on_event(host, session, event)
            except HostError as error:
                await self._look(host)
                log.debug("%s: events ended: %s", host.name, error)
            finally:
                for task in tasks:
                    task.cancel()

    async def _look(self, host: Record) -> Look:
        with transaction(source=SOURCE, reason="look"):
            [look] = await look_at(self._context, [host])
            await self._finish_the_dead([look])
        return look

    async def _look_now_and_then(self, host: Record) -> None:
        while True:
            await asyncio.sleep(self._interval_s * random.uniform(0.9, 1.1))
            await self._look(host)

    def _has_met(self, host_id: str) -> None:
        if (event := self._met.get(host_id)) is not None:
            event.set()

    async def _after_action(
        self, host: Record, session: Session, event: GuestEvent, node_id: str
    ) -> None:
        """Attend to an event that came while an action was at work, once the action is over.

        The action writes what it found; what happened to the guest just after that, and before
        it was written, is in this event alone.
        """
        async with self._context.registry.watch() as watch:
            while (vm := self._context.view.get(node_id)) is not None and vm.intent is not None:
                await anext(watch)
        with suppress(HostError):
            await self._on_event(host, session, event)

    async def _on_event(self, host: Record, session: Session, event: GuestEvent) -> None:
        # An event may be old by the time it is read: it says where to look, not what is true.
        generation, begun = self._context.view.generation, time.monotonic()
        guest = await session.guest(event.uuid)
        took_s = time.monotonic() - begun
        vm = self._context.view.by_key(f"uuid:{event.uuid}")
        if vm is None or (vm.parent != host.id and not active(guest)):
            return
        if vm.parent != host.id:
            await self._look(host)
            return
        seen = {event.uuid: guest} if guest is not None else {}
        look = Look(host.id, generation, time.time(), took_s, guests=seen)
        is_overtaken = False

        def find() -> list[Record]:
            nonlocal is_overtaken
            view = self._context.view
            is_overtaken = overtaken(view, [look])
            # The look is of one guest: what it says of others it does not know.
            return [record for record in guests_seen(view, [look]) if record.id == vm.id]

        with transaction(source=SOURCE, reason="event"):
            await commit_seen(self._context.registry, find)
        if is_overtaken:
            await self._look(host)

    async def _finish_the_dead(self, looks: Sequence[Look]) -> None:
        """Finish, or take back, what processes left that died in the middle of an action."""
        answered = {look.host_id for look in looks if look.error is None}
        concerned = [
            record.id
            for record in self._context.view.with_intent()
            if record.intent and answered & {record.parent, *record.intent.args.values()}
        ]
        await asyncio.gather(*(self._finish(node_id) for node_id in concerned))

    async def _finish(self, node_id: str) -> None:
        with suppress(Busy, NodeNotFound):
            async with self._context.registry.lock(node_id):
                await self._context.registry.refresh()
                try:
                    await settle(self._context, node_id)
                except OutcomeUnknown as error:
                    log.warning("%s", error)
