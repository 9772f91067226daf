"""Commands about hosts: poll asks them what is true, check tries what they need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from vagoth.drivers.base import Check
from vagoth.model import Commit
from vagoth.shell.commits import is_life, told_of
from vagoth.shell.context import Failure, Result, ShellContext
from vagoth.shell.grammar import Host, command
from vagoth.tables import Column, Look, Table, alarms
from vagoth.view import View

if TYPE_CHECKING:
    from vagoth.monitor import HostReport
    from vagoth.nodes.base import NodeList

_NO_HOSTS = "there are no hosts yet: new NAME --type hv driver=libvirt ssh=USER@HOST"
_HOST_ERROR = 5


def _hosts(ctx: ShellContext, names: Sequence[str]) -> NodeList | None:
    from vagoth.actions.base import hypervisor

    if not names:
        return None
    chosen = ctx.cluster.select(names)
    for node in chosen:
        hypervisor(node.record)
    return chosen


@command("poll")
async def poll(ctx: ShellContext, *hosts: Annotated[str, Host(globs=True)]) -> Result:
    """Look at hosts now, all at once, and write down what is true of their guests.

    A host that cannot be reached is marked so and reported; the others are not kept waiting.

    :param hosts: the hosts; all of them if none is named
    """
    ctx.refuse_dry_run("poll writes down what it sees")
    commits: list[Commit] = []
    stop = ctx.cluster.registry.listen(commits.append)
    try:
        reports = await ctx.cluster.poll(_hosts(ctx, hosts))
    finally:
        stop()
    failures = [Failure(report.host.name, report.error) for report in reports if report.error]
    found = {report.host.id: list(_found(commits, report, ctx.cluster.view)) for report in reports}
    return Result(_poll_table(reports, found), failures=failures)


def _found(commits: Sequence[Commit], report: HostReport, view: View) -> Iterator[str]:
    """What a poll found at one host: what changed there, alarms, guests that are not ours."""
    host_id = report.host.id
    for commit in commits:
        for change in commit.changes:
            sides = (change.before, change.after)
            if is_life(change) and any(side and side.parent == host_id for side in sides):
                told = "; ".join(told_of(change, view, only_life=True))
                yield f"{change.record.name}: {told}"
    for record in view.children(host_id):
        if record.alarm is not None:
            yield from (f"{record.name}: {alarm}" for alarm in alarms(record, view))
    if report.strangers:
        yield "not ours: " + ", ".join(sorted(guest.name for guest in report.strangers))


def _poll_table(reports: Sequence[HostReport], found: Mapping[str, Sequence[str]]) -> Table:
    columns = (
        Column("host", "HOST", Look.NAME),
        Column("state", "STATE", Look.STATE),
        Column("guests", "GUESTS", Look.NUMBER),
        Column("strangers", "NOT OURS", Look.NUMBER, weight=1),
        Column("took", "TOOK", weight=2),
        Column("found", "FOUND"),
    )
    rows = [
        (
            report.host.name,
            report.host.state,
            report.guests if report.error is None else None,
            len(report.strangers) if report.error is None else None,
            f"{report.took_s:.2f}s",
            "; ".join(found[report.host.id]) or None,
        )
        for report in reports
    ]
    records = [
        {
            "host": report.host.name,
            "state": report.host.state,
            "guests": report.guests if report.error is None else None,
            "strangers": [
                {"uuid": guest.uuid, "name": guest.name, "power": guest.power}
                for guest in report.strangers
            ],
            "took_s": round(report.took_s, 3),
            "found": list(found[report.host.id]),
            "error": str(report.error) if report.error is not None else None,
        }
        for report in reports
    ]
    notes = [] if reports else [_NO_HOSTS]
    kept = len(columns) if any(found.values()) else len(columns) - 1
    shown = [row[:kept] for row in rows]
    return Table("", columns[:kept], shown, records=records, notes=notes)


@command("check")
async def check(ctx: ShellContext, *hosts: Annotated[str, Host(globs=True)]) -> Result:
    """Try each prerequisite of hosts, and name the cure for what fails. Changes nothing.

    :param hosts: the hosts; all of them if none is named
    """
    found = await ctx.cluster.check(_hosts(ctx, hosts))
    failed = any(check.ok is False for checks in found.values() for check in checks)
    rows = [
        (host, check.name, _outcome(check), check.detail, check.cure)
        for host, checks in found.items()
        for check in checks
    ]
    columns = (
        Column("host", "HOST", Look.NAME),
        Column("check", "CHECK"),
        Column("outcome", "OUTCOME", Look.STATE),
        Column("detail", "DETAIL"),
        Column("cure", "CURE"),
    )
    kept = len(columns) if any(row[4] for row in rows) else len(columns) - 1
    records = [
        {"host": host, "check": check.name, "ok": check.ok}
        | {"detail": check.detail, "cure": check.cure}
        for host, checks in found.items()
        for check in checks
    ]
    table = Table(
        "",
        columns[:kept],
        [row[:kept] for row in rows],
        records=records,
        notes=[] if found else [_NO_HOSTS],
    )
    return Result(table, exit_code=_HOST_ERROR if failed else 0)


def _outcome(check: Check) -> str:
    return {True: "ok", False: "failed", None: "skipped"}[check.ok]
