"""Commands that follow what goes on: watch, monitor, jobs."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Iterator

from vagoth.model import Record
from vagoth.scheduler import Job
from vagoth.shell.commits import commit_data, commit_lines
from vagoth.shell.context import Line, Result, ShellContext
from vagoth.shell.grammar import command
from vagoth.tables import Column, Look, Table

log = logging.getLogger("vagoth.monitor")


@command("watch")
async def watch(ctx: ShellContext) -> Result:
    """Follow all hosts and print each change as it arrives, until interrupted.

    One line for each node that a commit changed; with --json, one object a line for each commit.
    It ends with Ctrl-C (exit code 130), as other tools that follow something do.
    """
    ctx.refuse_dry_run("watch follows the hosts, and what it sees is written down")
    return Result(lines=_commits(ctx))


async def _commits(ctx: ShellContext) -> AsyncIterator[Line]:
    view = ctx.cluster.view
    async with ctx.cluster.watch() as commits:
        async for commit in commits:
            if ctx.options.json:
                yield Line("", commit_data(commit, view))
                continue
            for line in commit_lines(commit, view):
                yield line


@command("monitor", in_shell=False, ends_when_told=True)
async def monitor(ctx: ShellContext) -> Result:
    """Follow all hosts without a terminal, and keep what is known of them true: for a service.

    What happens is logged to standard error, each line with its transaction and source. SIGTERM
    ends it, with exit code 0.
    """
    ctx.refuse_dry_run("monitor writes down what it sees")
    return Result(lines=_logged(ctx))


async def _logged(ctx: ShellContext) -> AsyncIterator[Line]:
    log_to_stderr(logging.DEBUG if ctx.options.debug else logging.INFO)
    view = ctx.cluster.view
    async with ctx.cluster.watch() as commits:
        log.info("following the hosts in %s", ctx.cluster.registry.location)
        try:
            async for commit in commits:
                for line in commit_lines(commit, view):
                    said = {"txid": commit.txid, "source": commit.source}
                    log.info("%s", line.text.split("  ", 1)[1], extra=said)
        finally:
            log.info("following no more")
    return
    yield Line("", None)  # what makes this an iterator, like every stream


class _Formatter(logging.Formatter):
    """Lines that carry txid and source; those of a commit are its own, not this process's."""

    def format(self, record: logging.LogRecord) -> str:
        from vagoth.transaction import current

        tx = current()
        for field, value in (("txid", tx.id if tx else "-"), ("source", tx.source if tx else "-")):
            if not hasattr(record, field):
                setattr(record, field, value)
        return super().format(record)


def log_to_stderr(level: int) -> None:
    """Send Vagoth's log lines to standard error, each with txid and source."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Formatter("%(asctime)s %(levelname)-7s %(txid)s %(source)s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    logging.getLogger("vagoth").setLevel(level)


@command("jobs")
async def jobs(ctx: ShellContext) -> Result:
    """Show this process's jobs, and what other processes do to nodes, or left half-done.

    What a process left that is gone is finished, or taken back, by the next verb on that node
    or by a monitor, once it has looked on the hosts.
    """
    own = ctx.cluster.scheduler.jobs()
    mine = {job.node_id for job in own if not job.is_over}
    rows = [*_own_rows(own)]
    for record in ctx.cluster.view.with_intent():
        if record.id not in mine:
            is_held = await ctx.cluster.registry.holder(record.id) is not None
            rows.append(_others_row(record, is_held))
    columns = (
        Column("node", "NODE", Look.NAME),
        Column("action", "ACTION"),
        Column("state", "STATE", Look.STATE),
        Column("since", "SINCE", Look.TIME, weight=2),
        Column("transaction", "TRANSACTION", weight=3),
        Column("who", "WHO", weight=1),
        Column("step", "STEP"),
    )
    return Result(Table("", columns, rows))


def _own_rows(jobs: list[Job]) -> Iterator[tuple[object, ...]]:
    for job in jobs:
        step = job.step if not job.is_over else str(job.error or "")
        if job.fraction is not None and not job.is_over:
            step += f" {job.fraction:.0%}"
        since = job.ended or job.started or job.created
        yield job.node, job.action, job.state.value, since, job.txid, "this process", step


def _others_row(record: Record, is_held: bool) -> tuple[object, ...]:
    intent = record.intent
    assert intent is not None
    state = "running" if is_held else "left"
    step = (
        "" if is_held else "its process is gone: the next verb on the node finds out what is true"
    )
    who = f"process {intent.owner.process} on {intent.owner.machine}"
    return record.name, intent.action, state, intent.since, intent.txid, who, step
