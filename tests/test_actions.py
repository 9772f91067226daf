"""The life of a VM, over simulated hosts: each verb, repeated, refused, failed, cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

import vagoth
from vagoth import Cluster, Commit, Job, JobState, Node, State
from vagoth.drivers.sim import SimDriver, SimHost
from vagoth.nodes.vm import VM

LINUX = {"memory": "256MiB"}


@pytest.fixture
async def cluster(store: Path) -> AsyncIterator[Cluster]:
    """Three simulated hosts, and little patience."""
    Path("vagoth.toml").write_text("[hosts]\nconnect_timeout_s = 0.5\ncall_timeout_s = 1.0\n")
    async with vagoth.connect(store=store, sim=3) as cluster:
        yield cluster


@pytest.fixture
async def web(cluster: Cluster) -> VM:
    """A VM without a host."""
    return await new_vm(cluster, "web1")


async def new_vm(cluster: Cluster, name: str, **definition: object) -> VM:
    return await cluster.new(name, definition={**LINUX, **definition})


def world(cluster: Cluster, host: str) -> SimHost:
    """The simulated host itself, to be broken from outside."""
    driver = cluster.driver("sim")
    assert isinstance(driver, SimDriver)
    return driver.world(cluster[host].id)


def uuid(node: Node) -> str:
    return next(key.removeprefix("uuid:") for key in node.keys if key.startswith("uuid:"))


async def powers(cluster: Cluster, vm: VM) -> dict[str, str]:
    """What each host itself says of a VM."""
    found = {}
    for host in cluster.nodes(type="hv"):
        for guest in world(cluster, host.name).guests():
            if guest.uuid == uuid(vm):
                found[host.name] = str(guest.power)
    return found


async def at_step(job: Job, step: str) -> None:
    """Wait until a job has come to a step."""
    async with asyncio.timeout(10):
        while not job.step.startswith(step):  # noqa: ASYNC110 - a job tells nobody of its steps
            await asyncio.sleep(0.01)


async def test_a_whole_life(cluster: Cluster, web: VM) -> None:
    await web.define(on="hv2")
    assert (web.state, web.parent) == (State.DEFINED, cluster["hv2"])
    await web.start()
    await web.pause()
    assert web.state == State.PAUSED
    await web.resume()
    await web.reboot()
    assert web.state == State.RUNNING
    await web.migrate("hv3")
    assert (web.state, web.parent) == (State.RUNNING, cluster["hv3"])
    assert await powers(cluster, web) == {"hv3": "running"}
    await web.shutdown(grace_s=5)
    assert web.state == State.STOPPED
    await web.undefine()
    assert (web.state, web.parent) == (State.NEW, None)
    assert await powers(cluster, web) == {}
    await web.delete()
    await new_vm(cluster, "web1")


async def test_every_verb_may_be_repeated(cluster: Cluster, web: VM) -> None:
    await web.stop()
    await web.shutdown()
    await web.undefine()
    for _ in range(2):
        await web.define()
    for _ in range(2):
        await web.start()
    host = web.parent
    assert host is not None
    await web.start(on=host)
    await web.migrate(host)
    for _ in range(2):
        await web.pause()
    for _ in range(2):
        await web.resume()
    for _ in range(2):
        await web.stop()
    for _ in range(2):
        await web.undefine()
    assert web.state == State.NEW


async def test_what_is_placed_elsewhere_than_asked_is_a_conflict(cluster: Cluster, web: VM) -> None:
    await web.start(on="hv1")
    with pytest.raises(vagoth.Claimed) as caught:
        await web.start(on="hv2")
    assert caught.value.holder == "hv1"
    await web.stop()
    with pytest.raises(vagoth.Claimed):
        await web.define(on="hv2")


async def test_what_makes_no_sense_is_refused_and_says_what_would(
    cluster: Cluster, web: VM
) -> None:
    for verb in ("pause", "resume", "reboot"):
        with pytest.raises(vagoth.JobFailed, match="on no host"):
            await web.submit(verb)
    with pytest.raises(vagoth.JobFailed):
        await web.migrate("hv2")
    await web.start(on="hv1")
    with pytest.raises(vagoth.InUse, match="stop web1 first"):
        await web.undefine()
    with pytest.raises(vagoth.InUse, match="undefine web1 first"):
        await web.delete()
    with pytest.raises(vagoth.InUse, match="hv1 carries web1"):
        await cluster["hv1"].delete()
    with pytest.raises(vagoth.InvalidInput, match="a hypervisor"):
        await web.migrate("web1")
    with pytest.raises(vagoth.InvalidInput, match="cannot start"):
        await cluster["hv1"].submit("start")
    await web.pause()
    with pytest.raises(vagoth.JobFailed, match="resume web1"):
        await web.start()


async def test_a_guest_that_will_not_go_down_is_left_running(cluster: Cluster, web: VM) -> None:
    await web.start(on="hv1")
    world(cluster, "hv1").deafen()
    with pytest.raises(vagoth.ShutdownTimeout):
        await web.shutdown(grace_s=0.2)
    assert web.state == State.RUNNING
    assert web.intent is None


async def test_a_definition_that_a_running_guest_cannot_take_is_pending(
    cluster: Cluster, web: VM
) -> None:
    await web.start()
    await web.set(definition={"memory": "512MiB"})
    assert web.is_pending
    await web.define()
    assert web.is_pending
    await web.stop()
    assert web.is_pending
    await web.define()
    assert not web.is_pending
    await web.set(definition={"memory": "384MiB"})
    assert web.is_pending
    await web.set(definition={"memory": "512MiB"})
    await web.start()
    assert not web.is_pending
    [guest] = [g for h in ("hv1", "hv2", "hv3") for g in world(cluster, h).guests()]
    assert guest.memory_bytes == 512 * 1024**2


async def test_a_rename_reaches_the_host_when_the_guest_is_next_off(
    cluster: Cluster, web: VM
) -> None:
    await web.start(on="hv1")
    await web.set(name="www1")
    assert [guest.name for guest in world(cluster, "hv1").guests()] == ["web1"]
    await web.stop()
    await web.start()
    assert [guest.name for guest in world(cluster, "hv1").guests()] == ["www1"]


async def test_vms_are_spread_and_a_full_host_is_passed_over(cluster: Cluster) -> None:
    vms = [await new_vm(cluster, f"web{number}", memory="3GiB") for number in range(6)]
    for vm in vms:
        await vm.start()
    placed = sorted(vm.parent.name for vm in vms if vm.parent)
    assert placed == ["hv1", "hv1", "hv2", "hv2", "hv3", "hv3"]
    seventh = await new_vm(cluster, "web7", memory="3GiB")
    with pytest.raises(vagoth.NoHostFits) as caught:
        await seventh.start()
    assert set(caught.value.reasons) == {"hv1", "hv2", "hv3"}
    assert "2.0 GiB of memory are free" in caught.value.reasons["hv1"]
    assert (seventh.state, seventh.parent) == (State.NEW, None)


async def test_a_kind_that_no_host_runs_is_refused_and_names_one_that_would(
    cluster: Cluster,
) -> None:
    await cluster.new("emu", type="hv", definition={"driver": "sim", "kinds": ["qemu"]})
    await cluster.poll()
    web = await new_vm(cluster, "web1")
    with pytest.raises(vagoth.InvalidInput, match="set kind=qemu") as caught:
        await web.start(on="emu")
    assert caught.value.field == "kind"


async def test_a_host_in_trouble_fails_its_job_and_no_other(cluster: Cluster) -> None:
    await cluster.poll()
    world(cluster, "hv1").cut()
    first, second = await new_vm(cluster, "web1"), await new_vm(cluster, "web2")
    jobs = [first.submit("start", on="hv1"), second.submit("start", on="hv2")]
    with pytest.raises(vagoth.HostUnreachable) as caught:
        await jobs[0]
    await jobs[1]
    assert caught.value.host == "hv1"
    assert cluster["hv1"].state == State.UNREACHABLE
    assert (first.state, first.parent, first.intent) == (State.NEW, None, None)
    assert second.state == State.RUNNING


async def test_no_memory_on_the_host_itself_takes_the_claim_back(cluster: Cluster) -> None:
    await cluster.poll()
    host = world(cluster, "hv1")
    host.define_foreign("stranger", memory="8GiB")
    web = await new_vm(cluster, "web1")
    with pytest.raises(vagoth.JobFailed, match="memory"):
        await web.start(on="hv1")
    assert (web.state, web.parent, web.intent) == (State.NEW, None, None)
    assert await powers(cluster, web) == {}


async def test_a_guest_found_running_elsewhere_is_never_started_again(cluster: Cluster) -> None:
    await cluster.poll()
    stranger = world(cluster, "hv2").define_foreign("elsewhere")
    web = await new_vm(cluster, "web1", uuid=stranger)
    with pytest.raises(vagoth.Claimed) as caught:
        await web.start(on="hv1")
    assert caught.value.holder == "hv2"
    assert (web.state, web.parent, web.intent) == (State.NEW, None, None)
    assert await powers(cluster, web) == {"hv2": "running"}
    await cluster.poll()
    assert (web.state, web.parent) == (State.RUNNING, cluster["hv2"])


async def test_hosts_that_do_not_say_are_named_and_do_not_stop_a_start(
    cluster: Cluster, web: VM
) -> None:
    await cluster.poll()
    world(cluster, "hv3").cut()
    job = web.submit("start", on="hv1")
    await job
    assert any("hv3" in note for note in job.notes)
    assert web.state == State.RUNNING


async def test_a_cancelled_start_ends_in_a_state_that_is_true(store: Path) -> None:
    async with vagoth.connect(store=store) as cluster:
        await cluster.new("hv1", type="hv", definition={"driver": "sim", "boot_s": 0.5})
        web = await new_vm(cluster, "web1")
        await cluster.poll()
        job = web.submit("start")
        await at_step(job, "starting the guest")
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert job.state is JobState.CANCELLED
        assert web.intent is None
        found = await powers(cluster, web)
        assert found == ({"hv1": "running"} if web.state == State.RUNNING else {})


async def test_jobs_of_one_node_keep_their_order(cluster: Cluster, web: VM) -> None:
    verbs = ["start", "pause", "resume", "stop", "start", "stop"]
    jobs = [web.submit(verb) for verb in verbs]
    for job in jobs:
        await job
    ends = [job.ended or 0.0 for job in jobs]
    assert ends == sorted(ends)
    assert web.state == State.STOPPED


async def test_awaiting_a_job_that_is_cancelled_cancels_the_job(cluster: Cluster, web: VM) -> None:
    await web.start(on="hv1")
    world(cluster, "hv1").deafen()
    job = web.submit("shutdown", grace_s=60)
    waiter = asyncio.ensure_future(job)
    await at_step(job, "waiting")
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert job.state is JobState.CANCELLED
    assert (web.state, web.intent) == (State.RUNNING, None)


async def test_an_answer_that_is_lost_leaves_a_doubt_that_a_poll_clears(
    cluster: Cluster, web: VM
) -> None:
    await web.start(on="hv1")
    host = world(cluster, "hv1")
    host.set_fault(drop=1.0)
    with pytest.raises((vagoth.OutcomeUnknown, vagoth.HostError)):
        await web.stop()
    assert web.state in (State.UNKNOWN, State.RUNNING)
    host.heal()
    await cluster.poll()
    found = (await powers(cluster, web))["hv1"]
    assert web.state == {"running": State.RUNNING, "off": State.STOPPED}[found]


async def test_a_failed_migration_leaves_the_guest_where_it_was(cluster: Cluster, web: VM) -> None:
    await web.start(on="hv1")
    world(cluster, "hv2").cut()
    with pytest.raises(vagoth.HostUnreachable):
        await web.migrate("hv2")
    assert (web.state, web.parent, web.intent) == (State.RUNNING, cluster["hv1"], None)
    assert cluster["hv2"].state == State.UNREACHABLE


async def test_a_migration_changes_the_parent_in_one_commit(cluster: Cluster, web: VM) -> None:
    await web.start(on="hv1")
    async with cluster.watch(follow=False) as watch:
        await web.migrate("hv2")
        commits: list[Commit] = []
        while not commits or commits[-1].changes[0].record.state != State.RUNNING:
            commits.append(await anext(watch))
    moves = [c for c in commits for change in c.changes if "parent" in list(change.fields())]
    assert len(moves) == 1
    [change] = moves[0].changes
    assert change.after is not None
    assert (change.after.parent, change.after.state) == (cluster["hv2"].id, State.RUNNING)
    assert change.after.former[0] == cluster["hv1"].id


async def test_many_started_at_once_are_spread_and_none_is_placed_where_it_no_longer_fits(
    cluster: Cluster,
) -> None:
    vms = [await new_vm(cluster, f"web{number}", memory="2GiB") for number in range(12)]
    await asyncio.gather(*(vm.start() for vm in vms))
    placed = sorted(vm.parent.name for vm in vms if vm.parent)
    assert placed == ["hv1"] * 4 + ["hv2"] * 4 + ["hv3"] * 4
    with pytest.raises(vagoth.NoHostFits):
        await (await new_vm(cluster, "web13", memory="1GiB")).start()


async def test_what_an_operator_does_is_the_operators_in_history_whoever_watches(
    cluster: Cluster, web: VM
) -> None:
    await web.start()
    async with cluster.watch():
        await cluster.monitor.met()
        for _ in range(5):
            for verb in ("pause", "resume", "stop", "start"):
                async with cluster.transaction(source="alice"):
                    await web.submit(verb)
    history = [commit async for commit in cluster.registry.history(node_id=web.id)]
    changes = [commit.source for commit in history if "state" in commit.changes[0].fields()]
    assert changes.count("alice") >= 20
    assert "monitor" not in changes


async def test_another_machine_under_a_hosts_name_is_not_taken_for_it(
    cluster: Cluster, web: VM
) -> None:
    await web.start(on="hv1")
    known = cluster["hv1"].keys
    assert [key.partition(":")[0] for key in known] == ["host"]
    await cluster["hv1"].set(remove_keys=known, add_keys=["host:some-other-machine"])
    cluster.context._identified.clear()
    [report] = await cluster.poll(["hv1"])
    assert isinstance(report.error, vagoth.HostError)
    assert "another machine answers" in report.error.problem
    assert (web.state, web.parent) == (State.UNKNOWN, cluster["hv1"])
    with pytest.raises(vagoth.HostError, match="another machine answers"):
        await web.start()
    await cluster["hv1"].set(remove_keys=["host:some-other-machine"])
    await cluster.poll()
    assert (cluster["hv1"].keys, web.record.state) == (known, State.RUNNING)


async def test_one_machine_under_two_names_is_one_machine(cluster: Cluster, store: Path) -> None:
    await cluster.poll()
    [key] = cluster["hv1"].keys
    await cluster["hv1"].set(remove_keys=[key])
    await cluster["hv2"].set(add_keys=[key], remove_keys=cluster["hv2"].keys)
    async with vagoth.connect(store=store) as other:
        reports = await other.poll(["hv1"])
        assert reports[0].error is not None
        assert "the same machine as hv2" in reports[0].error.problem


async def test_errors_of_hosts_name_guests_as_people_do(cluster: Cluster) -> None:
    await cluster.poll()
    world(cluster, "hv1").define_foreign("stranger", memory="8GiB")
    web = await new_vm(cluster, "web1")
    with pytest.raises(vagoth.JobFailed) as caught:
        await web.start(on="hv1")
    assert "web1" in caught.value.message
    assert uuid(web) not in str(caught.value)


async def test_a_guest_moved_behind_our_back_after_a_poll_is_not_started_again(
    cluster: Cluster, web: VM
) -> None:
    await web.start(on="hv1")
    await web.stop()
    await cluster.poll()
    world(cluster, "hv2").define_foreign("copy")
    copy = next(guest for guest in world(cluster, "hv2").guests() if guest.name == "copy")
    other = await new_vm(cluster, "web2", uuid=copy.uuid)
    await cluster.registry.update(other.id, lambda r: replace(r, parent=cluster["hv1"].id))
    with pytest.raises(vagoth.Claimed) as caught:
        await other.start()
    assert caught.value.holder == "hv2"
    assert await powers(cluster, other) == {"hv2": "running"}


async def test_a_host_cannot_be_deleted_while_an_action_needs_it(cluster: Cluster, web: VM) -> None:
    await web.start(on="hv1")
    args = {"host": cluster["hv1"].id, "target": cluster["hv2"].id, "state": "running"}
    await cluster.context.intend(web.record, "migrate", args=args, state="migrating")
    with pytest.raises(vagoth.InUse, match="migrate of web1 needs hv2"):
        await cluster["hv2"].delete()
    await cluster.poll()
    assert (web.intent, web.state) == (None, State.RUNNING)
    await cluster["hv2"].delete()


async def test_a_vm_found_on_two_hosts_is_not_started_resumed_or_moved(
    cluster: Cluster, web: VM
) -> None:
    await web.start(on="hv1")
    marked = {"duplicate_on": [cluster["hv2"].id]}
    await cluster.registry.update(
        web.id, lambda record: replace(record, alarm="duplicate", metadata=marked)
    )
    for verb, given in (("start", {}), ("resume", {}), ("migrate", {"host": "hv3"})):
        with pytest.raises(vagoth.Claimed, match="found on hv2"):
            await web.submit(verb, **given)
    await web.stop()
    await cluster.poll()
    assert web.alarm is None
    await web.start()


async def test_waiting_for_a_guest_to_go_down_keeps_nobody_from_the_host(
    cluster: Cluster,
) -> None:
    vms = [await new_vm(cluster, f"web{number}") for number in range(6)]
    for vm in vms:
        await vm.start(on="hv1")
    world(cluster, "hv1").deafen()
    waiting = [vm.submit("shutdown", grace_s=60) for vm in vms[:5]]
    await asyncio.gather(*(at_step(job, "waiting") for job in waiting))
    async with asyncio.timeout(5):
        await vms[5].stop()
    for job in waiting:
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job


async def test_cancelled_at_any_moment_nothing_is_left_undecided(cluster: Cluster) -> None:
    chance = random.Random(4711)
    web = await new_vm(cluster, "web1")
    for _ in range(60):
        verb = chance.choice(["start", "stop", "pause", "resume", "undefine", "shutdown"])
        job = web.submit(verb)
        await asyncio.sleep(chance.random() * 0.05)
        job.cancel()
        with contextlib.suppress(asyncio.CancelledError, vagoth.VagothError):
            await job
        assert web.intent is None, (verb, job.notes)
        # A guest that was asked to go down goes down, whoever has stopped waiting for it.
        await cluster.poll()
        found = await powers(cluster, web)
        awake = [host for host, power in found.items() if power in ("running", "paused")]
        assert len(awake) <= 1
        if web.state in (State.RUNNING, State.PAUSED):
            assert awake == [web.parent.name if web.parent else None], (verb, web, found)


async def test_an_alarm_outlives_an_action_that_failed(cluster: Cluster, web: VM) -> None:
    await web.start(on="hv1")
    marked = {"duplicate_on": [cluster["hv2"].id]}
    await cluster.registry.update(
        web.id, lambda record: replace(record, alarm="duplicate", metadata=marked)
    )
    world(cluster, "hv1").deafen()
    with pytest.raises(vagoth.ShutdownTimeout):
        await web.shutdown(grace_s=0.1)
    assert (web.record.alarm, web.intent) == ("duplicate", None)
