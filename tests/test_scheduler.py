"""Jobs: order, bounds, ends."""

from __future__ import annotations

import asyncio
import logging

import pytest

from vagoth.errors import JobFailed, OutcomeUnknown
from vagoth.scheduler import Job, JobState, Scheduler
from vagoth.transaction import TransactionFilter, current, transaction


async def test_jobs_of_different_nodes_do_not_wait_for_each_other() -> None:
    scheduler, meet = Scheduler(), asyncio.Barrier(5)

    async def run(job: Job) -> str:
        await meet.wait()
        return job.node

    jobs = [scheduler.submit("act", f"n{number}", f"n{number}", run) for number in range(5)]
    async with asyncio.timeout(5):
        assert [await job for job in jobs] == [f"n{number}" for number in range(5)]


async def test_jobs_of_one_node_run_one_after_another_even_after_a_failure() -> None:
    scheduler, order = Scheduler(), []

    async def run(job: Job) -> None:
        order.append(job.action)
        await asyncio.sleep(0)
        order.append(job.action)
        if job.action == "b":
            raise JobFailed("no")

    jobs = [scheduler.submit(action, "n", "n", run) for action in "abc"]
    await jobs[0]
    with pytest.raises(JobFailed):
        await jobs[1]
    await jobs[2]
    assert order == list("aabbcc")
    assert [job.state for job in jobs] == [JobState.DONE, JobState.FAILED, JobState.DONE]


async def test_one_that_need_not_wait_does_not() -> None:
    scheduler, release = Scheduler(), asyncio.Event()

    async def slow(_job: Job) -> None:
        await release.wait()

    async def quick(_job: Job) -> int:
        return 1

    waiting = scheduler.submit("slow", "n", "n", slow)
    assert await scheduler.submit("quick", "n", "n", quick, in_order=False) == 1
    release.set()
    await waiting


async def test_a_waiting_job_can_be_cancelled_and_the_next_one_still_waits_for_the_first() -> None:
    scheduler, release, order = Scheduler(), asyncio.Event(), []

    async def run(job: Job) -> None:
        order.append(job.action)
        if job.action == "a":
            await release.wait()
            order.append("a over")

    first, second, third = (scheduler.submit(action, "n", "n", run) for action in "abc")
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    await asyncio.sleep(0.01)
    assert order == ["a"]
    release.set()
    await first
    await third
    assert order == ["a", "a over", "c"]


async def test_a_host_has_so_many_places_and_no_more() -> None:
    scheduler, inside, most = Scheduler(jobs_per_host=2), 0, 0

    async def run(_job: Job) -> None:
        nonlocal inside, most
        async with scheduler.slots(["h"]):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.01)
            inside -= 1

    for job in [scheduler.submit("act", f"n{number}", "n", run) for number in range(8)]:
        await job
    assert most == 2


async def test_opposite_pairs_of_hosts_do_not_lock_each_other_out() -> None:
    scheduler = Scheduler(jobs_per_host=1)

    def between(first: str, second: str) -> Job:
        async def run(_job: Job) -> None:
            async with scheduler.slots([first, second]):
                await asyncio.sleep(0.005)

        return scheduler.submit("move", first + second, "n", run)

    async with asyncio.timeout(5):
        for job in [between("a", "b"), between("b", "a")] * 5:
            await job


async def test_an_unknown_outcome_is_no_failure() -> None:
    scheduler = Scheduler()

    async def run(_job: Job) -> None:
        raise OutcomeUnknown("who knows")

    job = scheduler.submit("act", "n", "n", run)
    with pytest.raises(OutcomeUnknown):
        await job
    assert job.state is JobState.UNKNOWN
    assert scheduler.jobs() == [job]
    assert scheduler.active() == []


async def test_closing_waits_until_each_has_found_out_what_is_true() -> None:
    scheduler, looked = Scheduler(), []

    async def run(_job: Job) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            looked.append(True)

    scheduler.submit("act", "n", "n", run)
    await asyncio.sleep(0)
    await scheduler.close()
    assert looked == [True]


async def test_a_job_carries_the_transaction_it_was_submitted_in() -> None:
    scheduler = Scheduler()

    async def run(_job: Job) -> str:
        tx = current()
        assert tx is not None
        return tx.id

    with transaction(source="me", reason="because") as tx:
        inside = scheduler.submit("act", "n", "n", run)
    outside = scheduler.submit("act", "m", "m", run)
    assert await inside == tx.id == inside.txid
    assert await outside == outside.txid != tx.id


async def test_log_lines_carry_txid_and_source(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(TransactionFilter())
    with transaction(source="deploy") as tx, caplog.at_level(logging.INFO):
        logging.getLogger("vagoth.test").info("hello")
    [record] = caplog.records
    assert (record.txid, record.source) == (tx.id, "deploy")  # type: ignore[attr-defined]
