"""Polling and following hosts: what is seen, what is left alone, who is not waited for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

import vagoth
from vagoth import Cluster, Commit, State
from vagoth.drivers.sim import SimDriver, SimHost
from vagoth.nodes.vm import VM

LINUX = {"memory": "256MiB"}


@pytest.fixture
async def cluster(store: Path) -> AsyncIterator[Cluster]:
    """Three simulated hosts, little patience, and no looks but those asked for."""
    Path("vagoth.toml").write_text(
        "[hosts]\nconnect_timeout_s = 0.5\ncall_timeout_s = 1.0\n[monitor]\ninterval_s = 3600\n"
    )
    async with vagoth.connect(store=store, sim=3) as cluster:
        yield cluster


@pytest.fixture
async def web(cluster: Cluster) -> VM:
    """A VM that runs on hv1."""
    vm = await cluster.new("web1", definition=LINUX)
    await vm.start(on="hv1")
    return vm


def world(cluster: Cluster, host: str) -> SimHost:
    driver = cluster.driver("sim")
    assert isinstance(driver, SimDriver)
    return driver.world(cluster[host].id)


def uuid(vm: VM) -> str:
    return next(key.removeprefix("uuid:") for key in vm.keys if key.startswith("uuid:"))


async def until(cluster: Cluster, is_so: Callable[[], bool]) -> list[Commit]:
    """Follow the hosts until something is so; return the commits that made it."""
    commits = []
    async with asyncio.timeout(15), cluster.watch() as watch:
        while not is_so():
            commits.append(await anext(watch))
    return commits


async def test_a_poll_meets_hosts_and_keeps_what_they_are(cluster: Cluster) -> None:
    reports = await cluster.poll()
    assert [report.host.name for report in reports] == ["hv1", "hv2", "hv3"]
    for host in cluster.nodes(type="hv"):
        assert host.state == State.UP
        assert host.metadata["facts"]["memory_bytes"] == 8 * 1024**3


async def test_a_poll_that_finds_nothing_new_commits_nothing(cluster: Cluster, web: VM) -> None:
    await cluster.poll()
    position = cluster.registry.position
    reports = await cluster.poll()
    assert cluster.registry.position == position
    assert [report.guests for report in reports] == [1, 0, 0]


async def test_guests_that_nobody_knows_are_named_and_left_alone(cluster: Cluster) -> None:
    world(cluster, "hv2").define_foreign("stranger")
    [_, report, _] = await cluster.poll()
    assert [guest.name for guest in report.strangers] == ["stranger"]
    assert "stranger" not in cluster


async def test_a_poll_of_what_is_no_host_is_refused(cluster: Cluster, web: VM) -> None:
    with pytest.raises(vagoth.InvalidInput, match="a hypervisor"):
        await cluster.poll(["web1"])
    with pytest.raises(vagoth.NodeNotFound):
        await cluster.poll(["hv9"])


async def test_a_change_on_a_host_arrives_without_a_poll(cluster: Cluster, web: VM) -> None:
    async with cluster.watch() as watch:
        await cluster.monitor.met()
        world(cluster, "hv1").destroy(uuid(web))
        async with asyncio.timeout(10):
            while web.state != State.STOPPED:
                commit = await anext(watch)
    assert (commit.source, commit.reason) == ("monitor", "event")


async def test_a_guest_that_is_gone_is_missing_and_keeps_its_claim(
    cluster: Cluster, web: VM
) -> None:
    host = world(cluster, "hv1")
    host.destroy(uuid(web))
    host.undefine(uuid(web))
    await cluster.poll()
    assert (web.state, web.parent) == (State.MISSING, cluster["hv1"])
    await web.start()
    assert web.state == State.RUNNING


async def test_a_host_that_hangs_is_reported_once_and_delays_nobody(
    cluster: Cluster, web: VM, caplog: pytest.LogCaptureFixture
) -> None:
    await cluster.poll()
    world(cluster, "hv1").cut()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            reports = await cluster.poll()
    assert [report.error is None for report in reports] == [False, True, True]
    assert (cluster["hv1"].state, web.state) == (State.UNREACHABLE, State.UNKNOWN)
    said = [record for record in caplog.records if "hv1" in record.getMessage()]
    assert len(said) == 1


async def test_a_host_that_is_back_is_found_by_itself(cluster: Cluster, web: VM) -> None:
    world(cluster, "hv1").cut()
    await cluster.poll()
    async with cluster.watch() as watch:
        await cluster.monitor.met()
        assert web.state == State.UNKNOWN
        world(cluster, "hv1").heal()
        async with asyncio.timeout(15):
            while web.state != State.RUNNING:
                await anext(watch)
    assert cluster["hv1"].state == State.UP


async def test_a_lost_connection_is_made_again_and_misses_nothing(
    cluster: Cluster, web: VM
) -> None:
    async with cluster.watch() as watch:
        await cluster.monitor.met()
        host = world(cluster, "hv1")
        host.drop()
        host.destroy(uuid(web))
        async with asyncio.timeout(15):
            while web.state != State.STOPPED:
                await anext(watch)
    assert cluster["hv1"].state == State.UP


async def test_hosts_that_come_later_are_followed_too(cluster: Cluster) -> None:
    async def add() -> None:
        await cluster.new("hv4", type="hv", definition={"driver": "sim"})

    task: Awaitable[None] = asyncio.ensure_future(add())
    await until(cluster, lambda: "hv4" in cluster and cluster["hv4"].state == State.UP)
    await task


async def test_a_guest_moved_by_somebody_else_is_followed(cluster: Cluster, web: VM) -> None:
    from vagoth.drivers.base import Host

    driver = cluster.driver("sim")
    hosts = [cluster["hv1"], cluster["hv3"]]
    source, target = [
        await driver.open(Host(host.id, host.name, host.definition)) for host in hosts
    ]
    await source.migrate(uuid(web), target)
    await cluster.poll()
    assert (web.state, web.parent, web.alarm) == (State.RUNNING, cluster["hv3"], None)
    await source.close()
    await target.close()


async def test_a_guest_moved_while_hosts_are_followed_is_no_alarm(
    cluster: Cluster, web: VM
) -> None:
    from vagoth.drivers.base import Host

    driver = cluster.driver("sim")
    hosts = [cluster["hv1"], cluster["hv3"]]
    source, target = [
        await driver.open(Host(host.id, host.name, host.definition)) for host in hosts
    ]
    async with cluster.watch() as watch:
        await cluster.monitor.met()
        await source.migrate(uuid(web), target)
        async with asyncio.timeout(10):
            while (web.parent, web.state) != (cluster["hv3"], State.RUNNING):
                commit = await anext(watch)
                assert commit.changes[0].record.alarm is None
    assert web.alarm is None
    await source.close()
    await target.close()


async def test_a_guest_that_runs_on_two_hosts_is_an_alarm_until_one_is_stopped(
    cluster: Cluster,
) -> None:
    await cluster.poll()
    uuid = world(cluster, "hv2").define_foreign("twice")
    web = await cluster.new("web1", definition={**LINUX, "uuid": uuid})
    await cluster.poll()
    assert web.parent == cluster["hv2"]
    other = await cluster.new("other", type="hv", definition={"driver": "sim"})
    copy_host(cluster, "hv2", "other")
    reports = await cluster.poll()
    assert all(report.error is None for report in reports)
    assert web.record.alarm == "duplicate"
    assert web.parent == cluster["hv2"]
    await cluster.poll(["hv2"])
    assert web.record.alarm == "duplicate"
    world(cluster, "other").destroy(uuid)
    await cluster.poll()
    assert (web.alarm, web.state) == (None, State.RUNNING)
    assert web.parent == cluster["hv2"]
    assert other.state == State.UP


def copy_host(cluster: Cluster, source: str, target: str) -> None:
    """Make one simulated host have what another has: as a disk image that was copied would."""
    folder = cluster.config.state_dir / "sim"
    kept = next(folder.glob(f"{cluster[source].id}*.json"))
    kept.with_name(kept.name.replace(cluster[source].id, cluster[target].id)).write_bytes(
        kept.read_bytes()
    )


async def test_two_controllers_that_watch_write_one_change_once(
    cluster: Cluster, web: VM, store: Path
) -> None:
    async with (
        vagoth.connect(store=store) as other,
        cluster.watch() as watch,
        other.watch() as second,
    ):
        await cluster.monitor.met()
        await other.monitor.met()
        world(cluster, "hv1").destroy(uuid(web))
        async with asyncio.timeout(10):
            while web.state != State.STOPPED or other["web1"].state != State.STOPPED:
                commit, same = await anext(watch), await anext(second)
        assert commit.position == same.position
        await cluster.poll()
        await other.poll()
        history = [commit async for commit in cluster.registry.history(node_id=web.id)]
        stops = [c for c in history if c.changes[0].record.state == State.STOPPED]
        assert len(stops) == 1
        assert other["web1"].state == State.STOPPED


async def test_what_a_dead_process_left_is_finished_by_a_poll(
    cluster: Cluster, web: VM, store: Path
) -> None:
    await web.stop()
    record = web.record
    left = await cluster.context.intend(
        record, "start", args={"host": cluster["hv1"].id, "state": "stopped"}, state="starting"
    )
    assert left.intent is not None
    async with vagoth.connect(store=store) as other:
        await other.poll(["hv2"])
        assert other["web1"].intent is not None
        async with cluster.registry.lock(web.id):
            await other.poll()
            assert other["web1"].intent is not None
        await other.poll()
        assert other["web1"].intent is None
        assert other["web1"].state == State.STOPPED


async def test_a_type_without_its_driver_is_a_hosts_own_trouble(cluster: Cluster) -> None:
    await cluster.new("far", type="hv", definition={"driver": "libvirt", "ssh": "root@127.0.0.1:1"})
    reports = await cluster.poll()
    by_name = {report.host.name: report for report in reports}
    assert by_name["far"].error is not None
    assert by_name["hv1"].error is None
    assert cluster["far"].state == State.UNREACHABLE
