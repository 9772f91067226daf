"""What every driver promises, as tests that a subclass runs over one driver.

A test module makes a subclass whose name pytest collects, and gives it these fixtures, as
methods of the class (those of a module are not seen where this class has some of that name)::

    class TestSim(DriverConformance):
        @pytest.fixture
        async def driver(self, tmp_path) -> AsyncIterator[Driver]: ...   # closed by the fixture

        @pytest.fixture
        def host(self) -> Host: ...                    # one that can be opened

        @pytest.fixture
        async def session(self, driver, host) -> AsyncIterator[Session]: ...    # closed, too

        @pytest.fixture
        def spec(self) -> SpecFactory: ...      # spec(name=…, memory=…, uuid=…), all optional

Further ones may be given; what needs one that is not there is skipped and says so:

``other``
    an open session to a second host of the same driver (of the kind that a live migration
    goes to; both hosts know each other)
``outside``
    an :class:`Outside`, which changes guests of ``host`` behind the driver's back
``dropped``
    ``await dropped()`` breaks the connection of ``session``, as a network would
``deafened``
    ``await deafened(uuid)`` makes a running guest ignore polite requests
``booted``
    ``await booted(uuid)`` waits until a running guest can react to a polite request
``grace_s``
    how long a polite shutdown may take

``bound_s`` of the class is how long anything else may take before it counts as never. Other
guests on the hosts are left alone. What a driver says it is capable of, it is held to: there
are no skips but by a capability that it does not claim, or a fixture that it does not have.
"""

from __future__ import annotations

import asyncio
import dataclasses
import uuid as uuidlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import ClassVar, Protocol

import msgspec
import pytest

from vagoth.definition import MIB, Kind
from vagoth.drivers.base import (
    Capability,
    Driver,
    Guest,
    GuestEvent,
    GuestSpec,
    Host,
    MigrationProgress,
    Power,
    Session,
)
from vagoth.errors import (
    GuestNotFound,
    HostError,
    HostUnreachable,
    InvalidInput,
    JobFailed,
    OutcomeUnknown,
    ShutdownTimeout,
    VagothError,
)

ODD_NAMES = [
    "$(reboot)",
    "`reboot`",
    "a;reboot",
    "<x>&\"'",
    "]]>",
    "&amp;",
    "%s{0}\\n",
    "a,debug-threads=on",
    "naïve-Ω-名",
    "a" * 63,
]


class SpecFactory(Protocol):
    """Makes specs of guests that the driver can run, each with a UUID and name of its own."""

    def __call__(
        self,
        *,
        name: str | None = None,
        memory: int | str | None = None,
        uuid: str | None = None,
    ) -> GuestSpec: ...


class Outside(Protocol):
    """Somebody else with access to the host."""

    async def destroy(self, uuid: str) -> None:
        """Pull a guest's plug."""


Define = Callable[..., Awaitable[GuestSpec]]
Act = Callable[[], Awaitable[None]]
ActOn = Callable[[str], Awaitable[None]]


def need(driver: Driver, *capabilities: Capability) -> None:
    """Skip the test if the driver does not claim what it is about."""
    for capability in capabilities:
        if capability not in driver.capabilities:
            pytest.skip(f"driver {driver.name} does not claim {capability}")


def unknown_uuid() -> str:
    """The UUID of no guest."""
    return str(uuidlib.uuid4())


class DriverConformance:
    """The promises; see the module."""

    bound_s: ClassVar[float] = 10.0

    # --- fixtures ---------------------------------------------------------------------

    @pytest.fixture
    def other(self) -> Session | None:
        return None

    @pytest.fixture
    def outside(self) -> Outside | None:
        return None

    @pytest.fixture
    def dropped(self) -> Act | None:
        return None

    @pytest.fixture
    def deafened(self) -> ActOn | None:
        return None

    @pytest.fixture
    def booted(self) -> ActOn:
        async def at_once(uuid: str) -> None:
            pass

        return at_once

    @pytest.fixture
    def grace_s(self) -> float:
        return 5.0

    @pytest.fixture
    async def define(
        self, driver: Driver, host: Host, session: Session, other: Session | None, spec: SpecFactory
    ) -> AsyncIterator[Define]:
        """``await define(name=…, memory=…)`` defines a guest, and forgets it after the test."""
        made: list[str] = []

        async def define(
            *, name: str | None = None, memory: int | str | None = None, uuid: str | None = None
        ) -> GuestSpec:
            wanted = spec(name=name, memory=memory, uuid=uuid)
            made.append(wanted.uuid)
            await session.define(wanted)
            return wanted

        yield define
        # The test may have broken the session.
        with suppress(HostError):
            async with await driver.open(host) as fresh:
                await self._forget(fresh, made)
        if other is not None and other.is_open:
            await self._forget(other, made)

    async def _forget(self, session: Session, uuids: Sequence[str]) -> None:
        for uuid in uuids:
            with suppress(VagothError):
                await session.stop(uuid)
            with suppress(VagothError):
                await session.undefine(uuid)

    @pytest.fixture
    async def defined(self, define: Define) -> GuestSpec:
        """A guest that is off."""
        return await define()

    @pytest.fixture
    async def running(self, session: Session, defined: GuestSpec) -> GuestSpec:
        """A guest that runs."""
        await session.start(defined.uuid)
        return defined

    # --- what the tests ask -----------------------------------------------------------

    async def seen(self, session: Session, uuid: str) -> Guest:
        """The guest, which is there, as both ways to ask tell it."""
        guest = await session.guest(uuid)
        assert guest is not None
        listed = [g for g in await session.guests() if g.uuid == uuid]
        assert listed == [guest]
        return guest

    async def power(self, session: Session, uuid: str) -> Power:
        return (await self.seen(session, uuid)).power

    async def expect_events(
        self, events: AsyncIterator[GuestEvent], uuid: str, powers: Sequence[Power | None]
    ) -> list[GuestEvent]:
        """Wait until the guest was told of in these powers, in this order, maybe with others
        between; return all events of it until then."""
        told: list[GuestEvent] = []
        left = list(powers)
        try:
            async with asyncio.timeout(self.bound_s):
                while left:
                    event = await anext(events)
                    if event.uuid == uuid:
                        told.append(event)
                        if event.power == left[0]:
                            del left[0]
        except TimeoutError:
            pytest.fail(f"never told of {left}, only {told}")
        return told

    # --- define -----------------------------------------------------------------------

    async def test_a_defined_guest_is_listed_off_as_it_was_defined(
        self, session: Session, defined: GuestSpec
    ) -> None:
        guest = await self.seen(session, defined.uuid)
        assert guest == Guest(
            uuid=defined.uuid,
            name=defined.name,
            power=Power.OFF,
            memory_bytes=defined.definition.memory_bytes,
            vcpus=defined.definition.vcpus,
            autostart=False,
            persistent=True,
        )

    async def test_defining_twice_is_harmless(self, session: Session, defined: GuestSpec) -> None:
        before = await self.seen(session, defined.uuid)
        await session.define(defined)
        assert await self.seen(session, defined.uuid) == before

    async def test_defining_again_changes_the_memory(
        self, session: Session, define: Define
    ) -> None:
        made = await define(memory="64MiB")
        await define(name=made.name, memory="96MiB", uuid=made.uuid)
        assert (await self.seen(session, made.uuid)).memory_bytes == 96 * MIB

    async def test_a_guest_that_is_off_is_renamed(self, session: Session, define: Define) -> None:
        made = await define()
        await define(name=made.name + "-2", uuid=made.uuid)
        assert (await self.seen(session, made.uuid)).name == made.name + "-2"

    async def test_a_name_given_up_is_free_again(self, session: Session, define: Define) -> None:
        made = await define()
        await define(name=made.name + "-2", uuid=made.uuid)
        second = await define(name=made.name)
        assert (await self.seen(session, second.uuid)).name == made.name

    async def test_a_name_held_by_another_guest_is_refused(
        self, session: Session, defined: GuestSpec, spec: SpecFactory
    ) -> None:
        second = spec(name=defined.name)
        with pytest.raises(JobFailed, match=r".") as refused:
            await session.define(second)
        assert not isinstance(refused.value, GuestNotFound)
        assert await session.guest(second.uuid) is None
        assert (await self.seen(session, defined.uuid)).name == defined.name

    async def test_defining_a_running_guest_leaves_it_running(
        self, session: Session, define: Define
    ) -> None:
        made = await define(memory="64MiB")
        await session.start(made.uuid)
        await define(name=made.name, memory="96MiB", uuid=made.uuid)
        guest = await self.seen(session, made.uuid)
        assert (guest.power, guest.memory_bytes) == (Power.RUNNING, 96 * MIB)

    async def test_a_running_guest_keeps_running_under_a_new_name(
        self, session: Session, define: Define, running: GuestSpec
    ) -> None:
        """The host may follow at once, or when it is next defined and off."""
        wanted = running.name + "-2"
        await define(name=wanted, uuid=running.uuid)
        guest = await self.seen(session, running.uuid)
        assert (guest.power, guest.name in (running.name, wanted)) == (Power.RUNNING, True)
        await session.stop(running.uuid)
        await define(name=wanted, uuid=running.uuid)
        assert (await self.seen(session, running.uuid)).name == wanted

    async def test_a_kind_that_the_host_cannot_run_is_refused_by_field(
        self, session: Session, spec: SpecFactory
    ) -> None:
        kinds = (await session.facts()).kinds
        lacking = next((kind for kind in Kind if kind not in kinds), None)
        if lacking is None:
            pytest.skip("this host runs every kind there is")
        wanted = spec()
        wanted = dataclasses.replace(
            wanted, definition=msgspec.structs.replace(wanted.definition, kind=lacking)
        )
        with pytest.raises(InvalidInput) as refused:
            await session.define(wanted)
        assert (refused.value.field, refused.value.value) == ("kind", lacking)
        assert await session.guest(wanted.uuid) is None

    @pytest.mark.parametrize("name", ODD_NAMES)
    async def test_an_odd_name_is_text_and_nothing_else(
        self, session: Session, define: Define, name: str
    ) -> None:
        made = await define(name=name)
        assert (await self.seen(session, made.uuid)).name == name
        await session.start(made.uuid)
        assert (await self.seen(session, made.uuid)).name == name
        await session.stop(made.uuid)
        await session.undefine(made.uuid)
        assert await session.guest(made.uuid) is None

    async def test_a_guest_is_never_set_to_start_by_itself(
        self, session: Session, running: GuestSpec
    ) -> None:
        assert not (await self.seen(session, running.uuid)).autostart
        await session.define(running)
        await session.stop(running.uuid)
        assert not (await self.seen(session, running.uuid)).autostart

    # --- undefine ---------------------------------------------------------------------

    async def test_an_undefined_guest_is_gone(self, session: Session, defined: GuestSpec) -> None:
        await session.undefine(defined.uuid)
        assert await session.guest(defined.uuid) is None
        assert defined.uuid not in {guest.uuid for guest in await session.guests()}

    async def test_undefining_what_is_gone_is_fine(
        self, session: Session, defined: GuestSpec
    ) -> None:
        await session.undefine(defined.uuid)
        await session.undefine(defined.uuid)
        await session.undefine(unknown_uuid())

    async def test_a_running_guest_is_not_undefined(
        self, session: Session, running: GuestSpec
    ) -> None:
        with pytest.raises(JobFailed):
            await session.undefine(running.uuid)
        guest = await self.seen(session, running.uuid)
        assert (guest.power, guest.persistent) == (Power.RUNNING, True)

    # --- start and stop ---------------------------------------------------------------

    async def test_a_started_guest_runs(self, session: Session, running: GuestSpec) -> None:
        assert await self.power(session, running.uuid) is Power.RUNNING

    async def test_a_repeated_start_is_harmless(self, session: Session, running: GuestSpec) -> None:
        await session.start(running.uuid)
        assert await self.power(session, running.uuid) is Power.RUNNING

    async def test_a_repeated_stop_is_harmless(self, session: Session, running: GuestSpec) -> None:
        await session.stop(running.uuid)
        assert await self.power(session, running.uuid) is Power.OFF
        await session.stop(running.uuid)
        assert await self.power(session, running.uuid) is Power.OFF

    async def test_a_stopped_guest_starts_again(self, session: Session, running: GuestSpec) -> None:
        await session.stop(running.uuid)
        await session.start(running.uuid)
        assert await self.power(session, running.uuid) is Power.RUNNING

    async def test_a_stopped_guest_stays_defined(
        self, session: Session, running: GuestSpec
    ) -> None:
        await session.stop(running.uuid)
        assert (await self.seen(session, running.uuid)).persistent

    async def test_a_guest_that_is_not_there_is_not_found(self, session: Session) -> None:
        uuid = unknown_uuid()
        assert await session.guest(uuid) is None
        for verb in (session.start, session.stop):
            with pytest.raises(GuestNotFound) as missing:
                await verb(uuid)
            assert missing.value.uuid == uuid

    # --- shutdown and reboot ----------------------------------------------------------

    async def test_a_shutdown_ends_off(
        self, driver: Driver, session: Session, running: GuestSpec, grace_s: float, booted: ActOn
    ) -> None:
        need(driver, Capability.SHUTDOWN)
        await booted(running.uuid)
        await session.shutdown(running.uuid, grace_s=grace_s)
        assert await self.power(session, running.uuid) is Power.OFF

    async def test_a_retried_shutdown_is_harmless(
        self, driver: Driver, session: Session, running: GuestSpec, grace_s: float, booted: ActOn
    ) -> None:
        """After a lost answer callers cannot know whether the first request landed."""
        need(driver, Capability.SHUTDOWN)
        await booted(running.uuid)
        await asyncio.gather(
            session.shutdown(running.uuid, grace_s=grace_s),
            session.shutdown(running.uuid, grace_s=grace_s),
        )
        await session.shutdown(running.uuid, grace_s=grace_s)
        assert await self.power(session, running.uuid) is Power.OFF

    async def test_shutting_down_what_is_off_is_harmless(
        self, driver: Driver, session: Session, defined: GuestSpec
    ) -> None:
        need(driver, Capability.SHUTDOWN)
        await session.shutdown(defined.uuid, grace_s=0)
        assert await self.power(session, defined.uuid) is Power.OFF

    async def test_a_guest_that_ignores_a_shutdown_is_left_running(
        self, driver: Driver, session: Session, running: GuestSpec, deafened: ActOn | None
    ) -> None:
        need(driver, Capability.SHUTDOWN)
        if deafened is None:
            pytest.skip("guests cannot be made to ignore requests here: no fixture deafened")
        await deafened(running.uuid)
        with pytest.raises(ShutdownTimeout) as late:
            await session.shutdown(running.uuid, grace_s=0.2)
        assert (late.value.name, late.value.after_s) == (running.name, 0.2)
        assert await self.power(session, running.uuid) is Power.RUNNING

    async def test_shutting_down_what_is_not_there_is_not_found(
        self, driver: Driver, session: Session
    ) -> None:
        need(driver, Capability.SHUTDOWN)
        with pytest.raises(GuestNotFound):
            await session.shutdown(unknown_uuid(), grace_s=1)

    async def test_a_rebooted_guest_runs(
        self, driver: Driver, session: Session, running: GuestSpec, booted: ActOn
    ) -> None:
        need(driver, Capability.REBOOT)
        await booted(running.uuid)
        await session.reboot(running.uuid)
        assert await self.power(session, running.uuid) is Power.RUNNING

    async def test_rebooting_what_is_off_is_refused(
        self, driver: Driver, session: Session, defined: GuestSpec
    ) -> None:
        need(driver, Capability.REBOOT)
        with pytest.raises(JobFailed):
            await session.reboot(defined.uuid)
        assert await self.power(session, defined.uuid) is Power.OFF
        with pytest.raises(GuestNotFound):
            await session.reboot(unknown_uuid())

    # --- pause ------------------------------------------------------------------------

    async def test_a_guest_is_paused_and_goes_on(
        self, driver: Driver, session: Session, running: GuestSpec
    ) -> None:
        need(driver, Capability.PAUSE)
        for _ in range(2):
            await session.pause(running.uuid)
            assert await self.power(session, running.uuid) is Power.PAUSED
        for _ in range(2):
            await session.resume(running.uuid)
            assert await self.power(session, running.uuid) is Power.RUNNING

    async def test_starting_what_is_paused_leaves_it_paused(
        self, driver: Driver, session: Session, running: GuestSpec
    ) -> None:
        need(driver, Capability.PAUSE)
        await session.pause(running.uuid)
        await session.start(running.uuid)
        assert await self.power(session, running.uuid) is Power.PAUSED

    async def test_a_paused_guest_is_stopped_and_not_undefined(
        self, driver: Driver, session: Session, running: GuestSpec
    ) -> None:
        need(driver, Capability.PAUSE)
        await session.pause(running.uuid)
        with pytest.raises(JobFailed):
            await session.undefine(running.uuid)
        assert await self.power(session, running.uuid) is Power.PAUSED
        await session.stop(running.uuid)
        assert await self.power(session, running.uuid) is Power.OFF

    async def test_what_is_off_is_neither_paused_nor_resumed(
        self, driver: Driver, session: Session, defined: GuestSpec
    ) -> None:
        need(driver, Capability.PAUSE)
        for verb in (session.pause, session.resume):
            with pytest.raises(JobFailed):
                await verb(defined.uuid)
            with pytest.raises(GuestNotFound):
                await verb(unknown_uuid())
        assert await self.power(session, defined.uuid) is Power.OFF

    # --- looking ----------------------------------------------------------------------

    async def test_one_call_tells_the_power_of_all_guests(
        self, driver: Driver, session: Session, define: Define
    ) -> None:
        off, runs = await define(), await define()
        await session.start(runs.uuid)
        wanted = {off.uuid: Power.OFF, runs.uuid: Power.RUNNING}
        if Capability.PAUSE in driver.capabilities:
            paused = await define()
            await session.start(paused.uuid)
            await session.pause(paused.uuid)
            wanted[paused.uuid] = Power.PAUSED
        told = {guest.uuid: guest.power for guest in await session.guests()}
        assert {uuid: told.get(uuid) for uuid in wanted} == wanted

    async def test_the_facts_of_a_host_are_sane_and_stay(
        self, session: Session, define: Define
    ) -> None:
        facts = await session.facts()
        # A hypervisor may have none to give, but no made-up one.
        assert facts.host_uuid in ("", str(uuidlib.UUID(facts.host_uuid or "0" * 32)))
        assert facts.hostname
        assert facts.hypervisor
        assert facts.version
        assert 16 * MIB < facts.memory_bytes < 1024**5
        assert 1 <= facts.cpus <= 65536
        assert facts.kinds
        assert all(isinstance(kind, Kind) for kind in facts.kinds)
        made = await define()
        await session.start(made.uuid)
        assert await session.facts() == facts

    async def test_a_healthy_host_passes_its_check(self, driver: Driver, host: Host) -> None:
        checks = await driver.check(host)
        assert checks
        assert [check for check in checks if not check.ok] == []

    # --- events -----------------------------------------------------------------------

    async def test_changes_are_told_in_order(
        self, driver: Driver, session: Session, defined: GuestSpec
    ) -> None:
        need(driver, Capability.EVENTS)
        async with session.events() as events:
            await session.start(defined.uuid)
            await session.stop(defined.uuid)
            await session.undefine(defined.uuid)
            told = await self.expect_events(events, defined.uuid, [Power.RUNNING, Power.OFF, None])
        assert {event.name for event in told} == {defined.name}

    async def test_a_new_guest_is_told_of(
        self, driver: Driver, session: Session, define: Define
    ) -> None:
        need(driver, Capability.EVENTS)
        async with session.events() as events:
            made = await define()
            await self.expect_events(events, made.uuid, [Power.OFF])

    async def test_a_pause_is_told_of(
        self, driver: Driver, session: Session, running: GuestSpec
    ) -> None:
        need(driver, Capability.EVENTS, Capability.PAUSE)
        async with session.events() as events:
            await session.pause(running.uuid)
            await session.resume(running.uuid)
            await self.expect_events(events, running.uuid, [Power.PAUSED, Power.RUNNING])

    async def test_a_guest_that_powers_itself_off_is_told_of(
        self, driver: Driver, session: Session, running: GuestSpec, grace_s: float, booted: ActOn
    ) -> None:
        need(driver, Capability.EVENTS, Capability.SHUTDOWN)
        await booted(running.uuid)
        async with session.events() as events:
            await session.shutdown(running.uuid, grace_s=grace_s)
            await self.expect_events(events, running.uuid, [Power.OFF])

    async def test_what_others_do_is_told(
        self, driver: Driver, session: Session, running: GuestSpec, outside: Outside | None
    ) -> None:
        need(driver, Capability.EVENTS)
        if outside is None:
            pytest.skip("guests cannot be changed behind the driver's back: no fixture outside")
        async with session.events() as events:
            await outside.destroy(running.uuid)
            await self.expect_events(events, running.uuid, [Power.OFF])
        assert await self.power(session, running.uuid) is Power.OFF

    async def test_what_another_session_does_is_told(
        self, driver: Driver, host: Host, session: Session, defined: GuestSpec
    ) -> None:
        need(driver, Capability.EVENTS)
        async with session.events() as events, await driver.open(host) as second:
            await second.start(defined.uuid)
            await self.expect_events(events, defined.uuid, [Power.RUNNING])

    async def test_all_who_listen_are_told(
        self, driver: Driver, session: Session, defined: GuestSpec
    ) -> None:
        need(driver, Capability.EVENTS)
        async with session.events() as first, session.events() as second:
            await session.start(defined.uuid)
            await self.expect_events(first, defined.uuid, [Power.RUNNING])
            await self.expect_events(second, defined.uuid, [Power.RUNNING])

    async def test_who_stopped_listening_misses_nothing_for_others(
        self, driver: Driver, session: Session, defined: GuestSpec
    ) -> None:
        need(driver, Capability.EVENTS)
        async with session.events() as first:
            async with session.events():
                await session.start(defined.uuid)
            await session.stop(defined.uuid)
            await self.expect_events(first, defined.uuid, [Power.RUNNING, Power.OFF])
        async with session.events() as again:
            await session.start(defined.uuid)
            await self.expect_events(again, defined.uuid, [Power.RUNNING])

    async def test_closing_fails_who_waits_for_events(
        self, driver: Driver, session: Session
    ) -> None:
        need(driver, Capability.EVENTS)
        async with session.events() as events:
            waiting = asyncio.ensure_future(_exhaust(events))
            closed = asyncio.ensure_future(session.closed())
            await asyncio.sleep(0)
            await session.close()
            async with asyncio.timeout(self.bound_s):
                with pytest.raises(HostUnreachable):
                    await waiting
                await closed

    # --- the connection ---------------------------------------------------------------

    async def test_closing_may_be_repeated(self, session: Session) -> None:
        assert session.is_open
        await asyncio.gather(session.close(), session.close())
        await session.close()
        assert not session.is_open
        async with asyncio.timeout(self.bound_s):
            await session.closed()

    async def test_a_closed_session_says_so(self, session: Session, spec: SpecFactory) -> None:
        await session.close()
        with pytest.raises(HostUnreachable):
            await session.guests()
        with pytest.raises(HostUnreachable):
            await session.define(spec())

    async def test_a_host_can_be_opened_again(
        self, driver: Driver, host: Host, session: Session, defined: GuestSpec
    ) -> None:
        async with await driver.open(host) as second:
            await session.close()
            assert await self.power(second, defined.uuid) is Power.OFF
            assert second.is_open
        assert not second.is_open

    async def test_two_sessions_to_a_host_see_the_same(
        self, driver: Driver, host: Host, session: Session, define: Define
    ) -> None:
        async with await driver.open(host) as second:
            made = await define()
            await second.start(made.uuid)
            assert await self.power(session, made.uuid) is Power.RUNNING
            await session.stop(made.uuid)
            assert await self.power(second, made.uuid) is Power.OFF

    async def test_ten_concurrent_calls_are_served(
        self, session: Session, define: Define, spec: SpecFactory
    ) -> None:
        made = await asyncio.gather(*(define() for _ in range(10)))
        looks = await asyncio.gather(*(session.guests() for _ in range(10)))
        wanted = {one.uuid for one in made}
        assert all(wanted <= {guest.uuid for guest in look} for look in looks)
        await asyncio.gather(*(session.undefine(one.uuid) for one in made))
        assert not wanted & {guest.uuid for guest in await session.guests()}

    async def test_a_cancelled_call_leaves_the_session_of_use(
        self, session: Session, defined: GuestSpec
    ) -> None:
        calls = [asyncio.ensure_future(session.guests()) for _ in range(4)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert session.is_open
        await session.start(defined.uuid)
        assert await self.power(session, defined.uuid) is Power.RUNNING

    async def test_a_dropped_connection_is_noticed(
        self, session: Session, running: GuestSpec, dropped: Act | None
    ) -> None:
        if dropped is None:
            pytest.skip("the connection cannot be broken here: no fixture dropped")
        closed = asyncio.ensure_future(session.closed())
        await asyncio.sleep(0)
        await dropped()
        async with asyncio.timeout(self.bound_s):
            await closed
        assert not session.is_open
        with pytest.raises(HostUnreachable):
            await session.guests()
        with pytest.raises(HostUnreachable):
            await session.stop(running.uuid)
        await session.close()

    async def test_a_read_over_a_dropped_connection_fails(
        self, session: Session, dropped: Act | None
    ) -> None:
        if dropped is None:
            pytest.skip("the connection cannot be broken here: no fixture dropped")
        await dropped()
        async with asyncio.timeout(self.bound_s):
            with pytest.raises(HostUnreachable):
                await _look_on(session)
        assert not session.is_open

    async def test_a_dropped_connection_fails_who_waits_for_events(
        self, driver: Driver, session: Session, dropped: Act | None
    ) -> None:
        need(driver, Capability.EVENTS)
        if dropped is None:
            pytest.skip("the connection cannot be broken here: no fixture dropped")
        async with session.events() as events:
            await dropped()
            async with asyncio.timeout(self.bound_s):
                with pytest.raises(HostUnreachable):
                    await _exhaust(events)

    async def test_a_dropped_connection_changes_no_guest(
        self, driver: Driver, host: Host, running: GuestSpec, dropped: Act | None
    ) -> None:
        if dropped is None:
            pytest.skip("the connection cannot be broken here: no fixture dropped")
        await dropped()
        async with await driver.open(host) as second:
            assert await self.power(second, running.uuid) is Power.RUNNING

    async def test_a_verb_over_a_dropped_connection_says_what_is_known(
        self, driver: Driver, host: Host, session: Session, running: GuestSpec, dropped: Act | None
    ) -> None:
        if dropped is None:
            pytest.skip("the connection cannot be broken here: no fixture dropped")
        await dropped()
        possible = {Power.OFF}
        try:
            async with asyncio.timeout(self.bound_s):
                await session.stop(running.uuid)
        except OutcomeUnknown:
            possible = {Power.OFF, Power.RUNNING}
        except HostUnreachable:
            possible = {Power.RUNNING}
        async with await driver.open(host) as second:
            assert await self.power(second, running.uuid) in possible

    async def test_a_shutdown_whose_connection_breaks_is_in_doubt(
        self,
        driver: Driver,
        session: Session,
        running: GuestSpec,
        dropped: Act | None,
        deafened: ActOn | None,
    ) -> None:
        need(driver, Capability.SHUTDOWN)
        if dropped is None or deafened is None:
            pytest.skip("a shutdown cannot be held up here: no fixture dropped, or deafened")
        await deafened(running.uuid)
        asking = asyncio.ensure_future(session.shutdown(running.uuid, grace_s=2 * self.bound_s))
        # A look that set out later has come back: so the request is on its way.
        await session.guests()
        await dropped()
        async with asyncio.timeout(self.bound_s):
            with pytest.raises((OutcomeUnknown, HostUnreachable)):
                await asking

    # --- live migration ---------------------------------------------------------------

    async def test_a_migrated_guest_goes_on_there_and_is_gone_here(
        self, driver: Driver, session: Session, other: Session | None, running: GuestSpec
    ) -> None:
        target = self._target(driver, other)
        told: list[MigrationProgress] = []
        await session.migrate(running.uuid, target, progress=told.append)
        guest = await self.seen(target, running.uuid)
        assert (guest.power, guest.name) == (Power.RUNNING, running.name)
        assert (guest.persistent, guest.autostart) == (True, False)
        assert guest.memory_bytes == running.definition.memory_bytes
        assert await session.guest(running.uuid) is None
        assert told
        assert all(p.transferred_bytes >= 0 and p.remaining_bytes >= 0 for p in told)
        assert sorted(p.transferred_bytes for p in told) == [p.transferred_bytes for p in told]

    async def test_a_migrated_guest_migrates_back(
        self, driver: Driver, session: Session, other: Session | None, running: GuestSpec
    ) -> None:
        target = self._target(driver, other)
        await session.migrate(running.uuid, target)
        await target.migrate(running.uuid, session)
        assert await self.power(session, running.uuid) is Power.RUNNING
        assert await target.guest(running.uuid) is None

    async def test_a_repeated_migration_is_refused(
        self, driver: Driver, session: Session, other: Session | None, running: GuestSpec
    ) -> None:
        target = self._target(driver, other)
        await session.migrate(running.uuid, target)
        with pytest.raises(JobFailed):
            await session.migrate(running.uuid, target)
        assert await self.power(target, running.uuid) is Power.RUNNING

    async def test_what_is_off_is_not_migrated(
        self, driver: Driver, session: Session, other: Session | None, defined: GuestSpec
    ) -> None:
        target = self._target(driver, other)
        with pytest.raises(JobFailed):
            await session.migrate(defined.uuid, target)
        assert await self.power(session, defined.uuid) is Power.OFF
        assert await target.guest(defined.uuid) is None

    async def test_what_is_not_there_is_not_migrated(
        self, driver: Driver, session: Session, other: Session | None
    ) -> None:
        target = self._target(driver, other)
        with pytest.raises(JobFailed):
            await session.migrate(unknown_uuid(), target)

    async def test_nothing_migrates_to_a_closed_session(
        self, driver: Driver, session: Session, other: Session | None, running: GuestSpec
    ) -> None:
        target = self._target(driver, other)
        await target.close()
        with pytest.raises(HostUnreachable):
            await session.migrate(running.uuid, target)
        assert await self.power(session, running.uuid) is Power.RUNNING

    async def test_opposite_migrations_pass_each_other(
        self, driver: Driver, session: Session, other: Session | None, define: Define
    ) -> None:
        target = self._target(driver, other)
        first, second = await define(), await define()
        for one in (first, second):
            await session.start(one.uuid)
        await session.migrate(first.uuid, target)
        await asyncio.gather(
            session.migrate(second.uuid, target), target.migrate(first.uuid, session)
        )
        assert await self.power(session, first.uuid) is Power.RUNNING
        assert await self.power(target, second.uuid) is Power.RUNNING
        assert await session.guest(second.uuid) is None
        assert await target.guest(first.uuid) is None

    async def test_a_cancelled_migration_leaves_the_guest_where_it_ran(
        self, driver: Driver, session: Session, other: Session | None, running: GuestSpec
    ) -> None:
        target = self._target(driver, other)
        under_way = asyncio.Event()
        moving = asyncio.ensure_future(
            session.migrate(running.uuid, target, progress=lambda _: under_way.set())
        )
        waiting = asyncio.ensure_future(under_way.wait())
        async with asyncio.timeout(self.bound_s):
            await asyncio.wait([moving, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        moving.cancel()
        await asyncio.wait([moving])
        here, there = await session.guest(running.uuid), await target.guest(running.uuid)
        if moving.cancelled():
            assert here is not None
            assert (here.power, there) == (Power.RUNNING, None)
        else:
            # It was over before it could be cancelled.
            moving.result()
            assert there is not None
            assert (there.power, here) == (Power.RUNNING, None)

    async def test_both_hosts_tell_of_a_migration(
        self, driver: Driver, session: Session, other: Session | None, running: GuestSpec
    ) -> None:
        need(driver, Capability.EVENTS)
        target = self._target(driver, other)
        async with session.events() as here, target.events() as there:
            await session.migrate(running.uuid, target)
            await self.expect_events(there, running.uuid, [Power.RUNNING])
            await self.expect_events(here, running.uuid, [None])

    def _target(self, driver: Driver, other: Session | None) -> Session:
        need(driver, Capability.LIVE_MIGRATION)
        if other is None:
            pytest.skip("there is no second host to migrate to: no fixture other")
        return other


async def _exhaust(events: AsyncIterator[GuestEvent]) -> None:
    async for _ in events:
        pass


async def _look_on(session: Session) -> None:
    # A call may still be answered before the break is known.
    while True:
        await session.guests()
