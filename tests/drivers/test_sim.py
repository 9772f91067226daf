"""Simulated hosts keep the promises of drivers, and those of their own."""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import itertools
import signal
import sys
import threading
import time
import uuid as uuidlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.drivers.conformance import Act, ActOn, DriverConformance, Outside, SpecFactory
from vagoth.definition import MIB, Kind, VMDefinition
from vagoth.drivers.base import (
    Driver,
    DriverSettings,
    GuestSpec,
    Host,
    MigrationProgress,
    Power,
    Session,
)
from vagoth.drivers.sim import SimDriver, SimHost, files
from vagoth.drivers.sim.watch import POLL_S
from vagoth.drivers.sim.world import World
from vagoth.errors import (
    HostUnreachable,
    HypervisorUnavailable,
    InvalidInput,
    JobFailed,
    OutcomeUnknown,
    ShutdownTimeout,
)

BOUND_S = 10.0
WEB = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff"


def make_spec(
    *, name: str | None = None, memory: int | str | None = None, uuid: str | None = None
) -> GuestSpec:
    uuid = uuid or str(uuidlib.uuid4())
    name = name or f"guest-{next(_numbers)}"
    return GuestSpec(uuid, name, f"node-{name}", VMDefinition(memory=memory or "64MiB"))


_numbers = itertools.count()


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
async def patient(state_dir: Path) -> AsyncIterator[SimDriver]:
    """A driver that waits for its hosts for longer than a busy machine takes."""
    driver = SimDriver(DriverSettings(state_dir))
    yield driver
    await driver.close()


@pytest.fixture
async def driver(state_dir: Path) -> AsyncIterator[SimDriver]:
    """A driver that gives up soon."""
    driver = SimDriver(DriverSettings(state_dir, connect_timeout_s=0.5, call_timeout_s=0.5))
    yield driver
    await driver.close()


@pytest.fixture
def host() -> Host:
    return Host("h1", "hv1", {"driver": "sim", "boot_s": 0.01, "shutdown_s": 0.01})


@pytest.fixture
async def session(driver: Driver, host: Host) -> AsyncIterator[Session]:
    async with await driver.open(host) as session:
        yield session


@pytest.fixture
def world(state_dir: Path) -> SimHost:
    return SimHost(state_dir, "h1")


class TestSim(DriverConformance):
    """The promises of all drivers."""

    @pytest.fixture
    def driver(self, patient: SimDriver) -> Driver:
        return patient

    @pytest.fixture
    async def other(self, driver: Driver) -> AsyncIterator[Session]:
        async with await driver.open(Host("h2", "hv2")) as session:
            yield session

    @pytest.fixture
    def spec(self) -> SpecFactory:
        return make_spec

    @pytest.fixture
    def outside(self, world: SimHost) -> Outside:
        class Somebody:
            async def destroy(self, uuid: str) -> None:
                await asyncio.to_thread(world.destroy, uuid)

        return Somebody()

    @pytest.fixture
    def dropped(self, world: SimHost) -> Act:
        async def drop() -> None:
            await asyncio.to_thread(world.drop)

        return drop

    @pytest.fixture
    def deafened(self, world: SimHost) -> ActOn:
        async def deafen(uuid: str) -> None:
            await asyncio.to_thread(world.deafen)

        return deafen


# --- what simulated hosts promise beyond ------------------------------------------------


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_S):
        while True:
            if true():
                return
            await asyncio.sleep(0.005)


async def run_elsewhere(code: str, *args: object) -> int | None:
    """Run Python code in another process; return how it ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *(str(arg) for arg in args)
    )
    return await process.wait()


async def a_running_guest(session: Session, **wanted: Any) -> GuestSpec:
    made = make_spec(**wanted)
    await session.define(made)
    await session.start(made.uuid)
    return made


def active(*worlds: SimHost) -> list[tuple[str, str]]:
    """On which host which guest runs."""
    return [(w.id, g.uuid) for w in worlds for g in w.guests() if g.power is not Power.OFF]


def healthy(**definition: object) -> Host:
    return Host("h1", "hv1", {"boot_s": 0.01, **definition})


async def test_a_host_is_as_the_last_process_left_it(state_dir: Path, host: Host) -> None:
    for power in (Power.OFF, Power.RUNNING, Power.RUNNING):
        driver = SimDriver(DriverSettings(state_dir))
        async with await driver.open(host) as session:
            wanted = make_spec(name="web", uuid=WEB)
            if power is Power.OFF:
                await session.define(wanted)
            else:
                await session.start(WEB)
            assert [guest.power for guest in await session.guests()] == [power]
        await driver.close()


async def test_hosts_are_apart(driver: Driver, session: Session) -> None:
    await a_running_guest(session)
    async with await driver.open(Host("h2", "hv2")) as second:
        assert await second.guests() == []
        assert (await second.facts()).host_uuid != (await session.facts()).host_uuid


async def test_what_another_process_does_is_told_soon(session: Session, state_dir: Path) -> None:
    made = await a_running_guest(session)
    async with session.events() as events:
        code = "import sys; from pathlib import Path; from vagoth.drivers.sim import SimHost\n"
        code += "SimHost(Path(sys.argv[1]), 'h1').destroy(sys.argv[2])"
        assert await run_elsewhere(code, state_dir, made.uuid) == 0
        async with asyncio.timeout(BOUND_S):
            event = await anext(events)
    assert (event.uuid, event.name, event.power) == (made.uuid, made.name, Power.OFF)


async def test_processes_that_change_a_host_together_lose_nothing(
    session: Session, world: SimHost, state_dir: Path
) -> None:
    code = "import sys; from pathlib import Path; from vagoth.drivers.sim import SimHost\n"
    code += "host = SimHost(Path(sys.argv[1]), 'h1')\n"
    code += "for n in range(40): host.define_foreign(f'{sys.argv[2]}-{n}')"
    async with session.events() as events:
        ends = await asyncio.gather(*(run_elsewhere(code, state_dir, part) for part in "abc"))
        assert ends == [0, 0, 0]
        async with asyncio.timeout(BOUND_S):
            told = [(await anext(events)).name for _ in range(120)]
    wanted = {f"{part}-{n}" for part in "abc" for n in range(40)}
    assert {guest.name for guest in world.guests()} == set(told) == wanted


async def test_nobody_looks_while_nobody_waits(session: Session) -> None:
    def looking() -> bool:
        return any(task.get_name() == "vagoth-sim-watcher" for task in asyncio.all_tasks())

    async with session.events():
        assert looking()
    await until(lambda: not looking())


async def test_who_falls_behind_the_journal_learns_how_things_are(
    session: Session, world: SimHost
) -> None:
    gone = world.define_foreign("gone", power=Power.OFF)
    stays = world.define_foreign("stays")
    async with session.events() as events:
        world.undefine(gone)
        for _ in range(70):  # the loop does not run meanwhile, so nobody looks
            world.destroy(stays)
            world.start(stays)
        async with asyncio.timeout(BOUND_S):
            told = {event.uuid: event.power for event in [await anext(events), await anext(events)]}
    assert told == {gone: None, stays: Power.RUNNING}


async def test_what_happens_while_a_listener_is_let_in_is_told(
    session: Session, world: SimHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own look may come back after the watcher's later one."""
    read, reads = files.StateFile.read, itertools.count(1)

    def slow_read(file: files.StateFile) -> World:
        seen, number = read(file), next(reads)
        if number == 2:  # the look that the listener begins with
            world.define_foreign("late")
            time.sleep(4 * POLL_S)
        return seen

    monkeypatch.setattr(files.StateFile, "read", slow_read)
    async with session.events() as events, asyncio.timeout(BOUND_S):
        assert (await anext(events)).name == "late"


async def test_who_only_looks_numbers_nothing(session: Session, state_dir: Path) -> None:
    """Two who saw time pass would otherwise give one number to different events."""
    made = await a_running_guest(session)
    file = files.StateFile(state_dir / "sim" / "h1.json", "hv1")
    file.change(lambda world: world.ask_to_power_off(made.uuid, time.time() - 1, deaf=False))
    seen = file.read()
    assert seen.guests[made.uuid].power is Power.OFF
    assert [entry.detail for entry in seen.journal] == ["defined", "started"]
    file.tend()
    assert [entry.detail for entry in file.read().journal][2:] == ["powered itself off"]
    assert file.read().serial == seen.serial + 1


async def test_nothing_happens_over_a_connection_that_broke_under_way(
    session: Session, world: SimHost, state_dir: Path
) -> None:
    made = await a_running_guest(session)
    state = state_dir / "sim" / "h1.json"
    with (state_dir / "sim" / "h1.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stopping = asyncio.ensure_future(session.stop(made.uuid))
        # A look that set out later has come back: so the verb waits for the lock.
        await session.guests()
        link = msgspec.json.decode(state.read_bytes(), type=World).link
        state.write_text(state.read_text().replace(link, "another"))
    with pytest.raises((HostUnreachable, OutcomeUnknown)):
        await stopping
    assert active(world) == [("h1", made.uuid)]


# --- sizes and refusals


async def test_a_host_has_only_so_much_memory(driver: Driver) -> None:
    async with await driver.open(healthy(memory="128MiB")) as session:
        first = await a_running_guest(session)
        second = await a_running_guest(session)
        third = make_spec(memory="1MiB")
        await session.define(third)
        with pytest.raises(JobFailed, match="not enough memory"):
            await session.start(third.uuid)
        await session.pause(first.uuid)
        with pytest.raises(JobFailed, match="not enough memory"):
            await session.start(third.uuid)
        await session.stop(second.uuid)
        await session.start(third.uuid)


async def test_a_running_guest_uses_what_it_was_started_with(driver: Driver) -> None:
    async with await driver.open(healthy(memory="128MiB")) as session:
        made = await a_running_guest(session, memory="64MiB")
        await session.define(make_spec(name=made.name, uuid=made.uuid, memory="128MiB"))
        await a_running_guest(session, memory="64MiB")
        await session.stop(made.uuid)
        with pytest.raises(JobFailed, match="not enough memory"):
            await session.start(made.uuid)


async def test_a_host_runs_the_kinds_it_has(driver: Driver) -> None:
    async with await driver.open(healthy(kinds=["qemu", "lxc"])) as session:
        assert (await session.facts()).kinds == (Kind.QEMU, Kind.LXC)
        with pytest.raises(InvalidInput, match="kind: 'kvm' is not one of qemu, lxc"):
            await session.define(make_spec())


@pytest.mark.parametrize(
    ("definition", "field"),
    [
        ({"memry": 1}, "memry"),
        ({"memory": "much"}, "memory"),
        ({"cpus": 0}, "cpus"),
        ({"kinds": []}, "kinds"),
        ({"kinds": ["xen"]}, "kinds[0]"),
        ({"faults": {"hang": 2}}, "faults.hang"),
        ({"faults": {"explode": 1}}, "faults.explode"),
        ({"latency_s": -1}, "latency_s"),
        ({"down": "maybe"}, "down"),
    ],
)
async def test_a_wrong_definition_is_refused_by_field(
    driver: Driver, definition: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        await driver.open(healthy(**definition))
    assert refused.value.field == field
    checks = await driver.check(healthy(**definition))
    assert [check.ok for check in checks] == [False, None, None, None]


@pytest.mark.parametrize(
    "host_id", ["..", ".", "a.json", "$(reboot)", pytest.param("名" * 63, id="long")]
)
async def test_any_id_of_a_node_makes_a_host(driver: Driver, state_dir: Path, host_id: str) -> None:
    async with await driver.open(Host(host_id, "hv")) as session:
        made = await a_running_guest(session)
        assert [guest.uuid for guest in await session.guests()] == [made.uuid]
    assert {path.name for path in state_dir.iterdir()} == {"sim"}
    assert len(list((state_dir / "sim").iterdir())) == 2


async def test_only_its_user_reads_the_state_of_a_host(session: Session, state_dir: Path) -> None:
    await a_running_guest(session)
    folder = state_dir / "sim"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


async def test_a_damaged_state_file_is_one_host_s_trouble(
    driver: Driver, host: Host, session: Session, state_dir: Path
) -> None:
    async with session.events() as events:
        for damage in (b"{", b"\xff", b'{"guests": 5}'):
            (state_dir / "sim" / "h1.json").write_bytes(damage)
            with pytest.raises(HypervisorUnavailable, match=r"h1\.json is damaged"):
                await driver.open(host)
            checks = await driver.check(host)
            assert [check.ok for check in checks] == [True, True, False, None]
            assert "remove the file" in checks[2].cure
        async with asyncio.timeout(BOUND_S):
            with pytest.raises(HostUnreachable, match="is damaged"):
                await anext(events)
    async with await driver.open(Host("h2", "hv2")) as second:
        assert await second.guests() == []


async def test_who_keeps_a_host_locked_holds_up_no_other(
    patient: SimDriver, host: Host, state_dir: Path
) -> None:
    """As a stopped process would."""
    made, session = make_spec(), await patient.open(host)
    with (state_dir / "sim" / "h1.lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = [asyncio.ensure_future(session.define(made)) for _ in range(20)]
        assert await session.guests() == []  # a look needs no lock
        async with await patient.open(Host("h2", "hv2")) as second:
            await a_running_guest(second)
        assert not any(call.done() for call in waiting)
    await asyncio.gather(*waiting)
    assert [guest.uuid for guest in await session.guests()] == [made.uuid]
    await session.close()


# --- faults


async def test_a_host_that_refuses_cannot_be_opened(driver: Driver) -> None:
    for definition in ({"down": "refuse"}, {"faults": {"refuse": 1}}):
        with pytest.raises(HostUnreachable, match="connection refused"):
            await driver.open(healthy(**definition))
        checks = await driver.check(healthy(**definition))
        assert [check.ok for check in checks] == [True, False, None, None]


async def test_a_host_that_hangs_is_given_up(driver: Driver) -> None:
    async def give_up(definition: dict[str, Any]) -> None:
        with pytest.raises(HostUnreachable, match=r"no answer within 0\.5 s"):
            await driver.open(healthy(**definition))

    ways: list[dict[str, Any]] = [{"down": "hang"}, {"faults": {"hang": 1}}, {"latency_s": 60}]
    await asyncio.gather(*(give_up(definition) for definition in ways))


async def test_a_look_that_finds_no_answer_is_unreachable(session: Session, world: SimHost) -> None:
    world.set_fault(hang=1)
    with pytest.raises(HostUnreachable, match="no answer within"):
        await session.guests()
    world.heal()
    assert await session.guests() == []


async def test_a_look_under_which_the_connection_breaks_is_unreachable(
    session: Session, world: SimHost
) -> None:
    world.set_fault(drop=1)
    with pytest.raises(HostUnreachable, match="the connection was lost"):
        await session.guests()
    assert not session.is_open


@pytest.mark.parametrize("fault", ["hang", "drop"])
async def test_a_verb_that_finds_no_answer_may_have_happened_or_not(
    driver: SimDriver, fault: str
) -> None:
    async def stopped(seed: int) -> Power:
        host = Host(f"h{seed}", "hv", {"seed": seed})
        async with await driver.open(host) as session:
            made = await a_running_guest(session)
            world = driver.world(host.id)
            world.set_fault(**{fault: 1.0})
            with pytest.raises(OutcomeUnknown, match="may have been done"):
                await session.stop(made.uuid)
            assert session.is_open is (fault == "hang")
            return world.guests()[0].power

    outcomes = await asyncio.gather(*(stopped(seed) for seed in range(8)))
    assert set(outcomes) == {Power.OFF, Power.RUNNING}


async def test_a_refusal_whose_answer_is_lost_is_in_doubt_as_well(
    session: Session, world: SimHost
) -> None:
    world.set_fault(drop=1)
    with pytest.raises(OutcomeUnknown):
        await session.start(WEB)


async def fates(state_dir: Path, count: int, **definition: object) -> list[bool]:
    driver = SimDriver(DriverSettings(state_dir))
    told = []
    for _ in range(count):
        try:
            await (await driver.open(healthy(**definition))).close()
            told.append(True)
        except HostUnreachable:
            told.append(False)
    await driver.close()
    return told


async def test_the_faults_of_one_run_are_those_of_the_next(state_dir: Path) -> None:
    flaky = {"faults": {"refuse": 0.5}}
    once = await fates(state_dir / "once", 40, **flaky)
    again = await fates(state_dir / "again", 20, **flaky)
    # Another process goes on where the last one stopped.
    again += await fates(state_dir / "again", 20, **flaky)
    assert once == again
    assert set(once) == {True, False}
    assert once != await fates(state_dir / "other", 40, seed=1, **flaky)


async def test_a_host_that_is_cut_off_and_comes_back_goes_on(
    session: Session, world: SimHost
) -> None:
    made = await a_running_guest(session)
    async with session.events() as events:
        world.cut()
        looking = asyncio.ensure_future(session.guests())
        world.destroy(made.uuid)
        await asyncio.sleep(3 * POLL_S)
        assert not looking.done()
        world.heal()
        async with asyncio.timeout(BOUND_S):
            assert (await anext(events)).power is Power.OFF
            assert [guest.power for guest in await looking] == [Power.OFF]
    assert session.is_open


async def test_a_host_that_stays_cut_off_loses_its_sessions(
    driver: Driver, host: Host, session: Session, world: SimHost
) -> None:
    async with session.events() as events:
        world.cut()
        with pytest.raises(HostUnreachable, match="no answer within"):
            await session.guests()
        with pytest.raises(HostUnreachable):
            await anext(events)
        async with asyncio.timeout(BOUND_S):
            await session.closed()
    world.heal()
    assert not session.is_open
    async with await driver.open(host) as again:
        assert await again.guests() == []


async def test_who_only_listens_notices_a_host_that_is_cut_off(
    session: Session, world: SimHost
) -> None:
    async with session.events() as events:
        world.cut()
        async with asyncio.timeout(BOUND_S):
            with pytest.raises(HostUnreachable, match="no answer within"):
                await anext(events)


async def test_a_verb_under_which_a_host_goes_silent_is_in_doubt(
    driver: Driver, world: SimHost
) -> None:
    async with await driver.open(healthy(boot_s=0.1)) as session:
        made = make_spec()
        await session.define(made)
        starting = asyncio.ensure_future(session.start(made.uuid))
        await until(lambda: world.guests()[0].power is Power.RUNNING)
        world.cut()
        with pytest.raises(OutcomeUnknown):
            await starting
        assert world.guests()[0].power is Power.RUNNING


async def test_a_verb_under_which_the_session_is_closed_is_in_doubt(
    driver: Driver, world: SimHost
) -> None:
    async with await driver.open(healthy(boot_s=30)) as session:
        made = make_spec()
        await session.define(made)
        starting = asyncio.ensure_future(session.start(made.uuid))
        await until(lambda: world.guests()[0].power is Power.RUNNING)
        await session.close()
        with pytest.raises(OutcomeUnknown, match="the connection is closed"):
            await starting


async def test_a_host_that_begins_to_refuse_resets_its_sessions(
    session: Session, world: SimHost
) -> None:
    async with session.events() as events:
        world.refuse()
        async with asyncio.timeout(BOUND_S):
            with pytest.raises(HostUnreachable, match="reset"):
                await anext(events)
    assert not session.is_open


# --- guests


async def test_a_shutdown_goes_on_when_its_asker_is_gone(
    driver: Driver, world: SimHost, state_dir: Path
) -> None:
    async with await driver.open(healthy(shutdown_s=0.1)) as session:
        made = await a_running_guest(session)
        asking = asyncio.ensure_future(session.shutdown(made.uuid, grace_s=60))
        await until(lambda: "off_at" in (state_dir / "sim" / "h1.json").read_text())
        asking.cancel()
    await until(lambda: world.guests()[0].power is Power.OFF)


async def test_a_shutdown_that_comes_late_comes_all_the_same(
    driver: Driver, world: SimHost
) -> None:
    async with await driver.open(healthy(shutdown_s=0.2)) as session:
        made = await a_running_guest(session)
        async with session.events() as events:
            with pytest.raises(ShutdownTimeout):
                await session.shutdown(made.uuid, grace_s=0.01)
            async with asyncio.timeout(BOUND_S):
                event = await anext(events)
        assert (event.power, event.detail) == (Power.OFF, "powered itself off")


async def test_a_guest_that_is_paused_powers_off_once_it_goes_on(
    driver: Driver, world: SimHost
) -> None:
    async with await driver.open(healthy(shutdown_s=0.01)) as session:
        made = await a_running_guest(session)
        await session.pause(made.uuid)
        with pytest.raises(ShutdownTimeout):
            await session.shutdown(made.uuid, grace_s=0.05)
        assert world.guests()[0].power is Power.PAUSED
        await session.resume(made.uuid)
        await until(lambda: world.guests()[0].power is Power.OFF)


async def test_strangers_are_seen_as_they_are(session: Session, world: SimHost) -> None:
    async with session.events() as events:
        kept = world.define_foreign("kept", memory="64MiB", vcpus=2, autostart=True)
        passing = world.define_foreign("passing", persistent=False, power=Power.PAUSED)
        with pytest.raises(JobFailed, match="belongs to another guest"):
            world.define_foreign("kept")
        told = {guest.name: guest for guest in await session.guests()}
        assert told["kept"].autostart
        assert (told["kept"].memory_bytes, told["kept"].vcpus) == (64 * MIB, 2)
        assert not told["passing"].persistent
        assert told["passing"].power is Power.PAUSED
        world.destroy(passing)
        world.crash(kept)
        async with asyncio.timeout(BOUND_S):
            powers = [(await anext(events)).power for _ in range(4)]
        assert powers == [Power.RUNNING, Power.PAUSED, None, Power.CRASHED]
        assert await session.guest(passing) is None
    await session.start(kept)
    assert await session.guests() == [dataclasses.replace(told["kept"], power=Power.RUNNING)]


async def test_a_stranger_that_is_defined_starts_by_itself_no_more(
    session: Session, world: SimHost
) -> None:
    uuid = world.define_foreign("kept", persistent=False, autostart=True)
    await session.define(make_spec(name="kept", uuid=uuid))
    (guest,) = await session.guests()
    assert (guest.power, guest.autostart, guest.persistent) == (Power.RUNNING, False, True)


async def test_a_host_that_loses_its_power_comes_back_with_its_guests_off(
    driver: Driver, host: Host, session: Session, world: SimHost
) -> None:
    made = await a_running_guest(session)
    by_itself = world.define_foreign("by-itself", autostart=True)
    world.restart()
    with pytest.raises(HostUnreachable):
        await session.guests()
    async with await driver.open(host) as again:
        powers = {guest.uuid: guest.power for guest in await again.guests()}
    assert powers == {made.uuid: Power.OFF, by_itself: Power.RUNNING}


async def test_what_is_set_from_outside_counts_until_it_is_healed(
    driver: Driver, world: SimHost
) -> None:
    async with await driver.open(healthy(deaf=True, shutdown_s=0)) as session:
        made = await a_running_guest(session)
        world.set_fault(refuse=1)
        world.heal()
        with pytest.raises(ShutdownTimeout):
            await session.shutdown(made.uuid, grace_s=0.02)


# --- live migration


@pytest.fixture
async def second(driver: Driver) -> AsyncIterator[Session]:
    async with await driver.open(
        Host("h2", "hv2", {"memory": "128MiB", "boot_s": 0.01})
    ) as session:
        yield session


async def test_the_progress_of_a_migration_ends_with_all_of_it(
    session: Session, second: Session
) -> None:
    made = await a_running_guest(session)
    told: list[MigrationProgress] = []
    await session.migrate(made.uuid, second, progress=told.append)
    assert told[0] == MigrationProgress(0, 64 * MIB, 64 * MIB)
    assert told[-1] == MigrationProgress(64 * MIB, 0, 64 * MIB)


@pytest.mark.parametrize("reason", ["memory", "kind", "name", "there", "same", "paused"])
async def test_a_migration_that_a_host_refuses_leaves_the_guest_where_it_is(
    driver: SimDriver, session: Session, second: Session, reason: str
) -> None:
    made = await a_running_guest(session, memory="129MiB" if reason == "memory" else "64MiB")
    target = second
    if reason == "kind":
        target = await driver.open(Host("h2", "hv2", {"kinds": ["lxc"]}))
    elif reason == "name":
        driver.world("h2").define_foreign(made.name)
    elif reason == "there":
        await a_running_guest(second, uuid=made.uuid)
    elif reason == "same":
        target = await driver.open(session.host)
    elif reason == "paused":
        await session.pause(made.uuid)
    before = active(driver.world("h1"), driver.world("h2"))
    with pytest.raises(JobFailed):
        await session.migrate(made.uuid, target)
    assert active(driver.world("h1"), driver.world("h2")) == before
    await target.close()


async def test_a_migration_takes_the_place_of_what_is_defined_there(
    driver: SimDriver, session: Session, second: Session
) -> None:
    made = await a_running_guest(session)
    await second.define(made)
    await session.migrate(made.uuid, second)
    assert active(driver.world("h1"), driver.world("h2")) == [("h2", made.uuid)]


async def test_a_migration_to_a_host_that_goes_away_leaves_the_guest_here(
    driver: SimDriver, session: Session, second: Session
) -> None:
    made = await a_running_guest(session)
    with pytest.raises(HostUnreachable, match="hv2"):
        await session.migrate(made.uuid, second, progress=lambda _: driver.world("h2").refuse())
    assert active(driver.world("h1"), driver.world("h2")) == [("h1", made.uuid)]


async def test_a_migration_whose_connection_breaks_is_in_doubt_and_runs_once(
    driver: SimDriver, session: Session, second: Session
) -> None:
    made = await a_running_guest(session)
    with pytest.raises(OutcomeUnknown):
        await session.migrate(made.uuid, second, progress=lambda _: driver.world("h1").drop())
    assert len(active(driver.world("h1"), driver.world("h2"))) == 1


async def test_a_migration_that_its_progress_callback_fails_leaves_the_guest_here(
    driver: SimDriver, session: Session, second: Session
) -> None:
    def fail(progress: MigrationProgress) -> None:
        raise ZeroDivisionError

    made = await a_running_guest(session)
    with pytest.raises(ZeroDivisionError):
        await session.migrate(made.uuid, second, progress=fail)
    assert active(driver.world("h1"), driver.world("h2")) == [("h1", made.uuid)]


@pytest.mark.parametrize("can_go_back", [True, False])
async def test_a_migration_cancelled_too_late_is_taken_back(
    driver: SimDriver,
    session: Session,
    second: Session,
    monkeypatch: pytest.MonkeyPatch,
    can_go_back: bool,
) -> None:
    reached, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hand_over(*args: Any, is_wanted: Callable[[], bool], **kwargs: Any) -> bool:
        def is_wanted_still() -> bool:
            answer = is_wanted()
            loop.call_soon_threadsafe(reached.set)
            go.wait(BOUND_S)
            return answer

        if reached.is_set() and not can_go_back:
            raise JobFailed("no way back")
        return files.hand_over(*args, is_wanted=is_wanted_still, **kwargs)

    monkeypatch.setattr("vagoth.drivers.sim.session.hand_over", hand_over)
    made = await a_running_guest(session)
    moving = asyncio.ensure_future(session.migrate(made.uuid, second))
    await reached.wait()
    moving.cancel()
    await asyncio.sleep(0.01)
    moving.cancel()
    go.set()
    with pytest.raises(asyncio.CancelledError if can_go_back else OutcomeUnknown):
        await moving
    assert active(driver.world("h1"), driver.world("h2")) == [
        ("h1" if can_go_back else "h2", made.uuid)
    ]


KILLED_MIGRATION = """
import os, signal, sys
from pathlib import Path
from vagoth.drivers.sim.files import StateFile, hand_over, path_of

writes, replace = int(sys.argv[3]), os.replace

def killed_after(*paths):
    global writes
    if not writes:
        os.kill(os.getpid(), signal.SIGKILL)
    writes -= 1
    replace(*paths)

os.replace = killed_after
here, there = (StateFile(path_of(Path(sys.argv[1]), id), id) for id in ("h1", "h2"))
hand_over(here, there, sys.argv[2], check=lambda h, t: None, is_wanted=lambda: True)
"""


@pytest.mark.parametrize("writes", range(5))
async def test_a_migration_killed_at_any_write_leaves_the_guest_on_one_host(
    driver: SimDriver, session: Session, second: Session, state_dir: Path, writes: int
) -> None:
    made = await a_running_guest(session)
    worlds = driver.world("h1"), driver.world("h2")
    async with second.events() as events:
        ended = await run_elsewhere(KILLED_MIGRATION, state_dir, made.uuid, writes)
        assert ended == (0 if writes == 4 else -signal.SIGKILL)
        here = ("h1" if writes < 2 else "h2", made.uuid)
        assert active(*worlds) == [here]
        # Those who come next find it so, finish it, and find it so again.
        for world in reversed(worlds):
            world.define_foreign("next", power=Power.OFF)
            assert active(*worlds) == [here]
        if writes >= 2:
            async with asyncio.timeout(BOUND_S):
                assert (await anext(events)).power is Power.RUNNING
    # What was only announced never comes to life, even when the source forgets the guest.
    holder = driver.world(here[0])
    holder.destroy(made.uuid)
    holder.undefine(made.uuid)
    assert active(*worlds) == []
    assert not [g for world in worlds for g in world.guests() if g.uuid == made.uuid]
