"""Running one verb on nodes: planned where that was asked for, else as jobs side by side."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vagoth.actions.base import Plan
from vagoth.errors import NodeNotFound, OutcomeUnknown, VagothError
from vagoth.scheduler import Job, JobState
from vagoth.shell.context import EXIT_INTERRUPTED, Failure, Interrupted, Result, ShellContext
from vagoth.tables import Column, Look, Table, shown_state
from vagoth.view import View, is_glob

if TYPE_CHECKING:
    from vagoth.nodes.base import Node


def targets(ctx: ShellContext, names: Sequence[str], verb: str) -> list[Node]:
    """The nodes that were named for a verb; of those that a pattern means, the ones that have it.

    :raises NodeNotFound: a name or pattern means no such node
    """
    chosen: dict[str, Node] = {}
    for name in names:
        found = list(ctx.cluster.select([name]))
        if is_glob(name) and name not in ctx.cluster:
            found = [node for node in found if verb in node.actions]
            if not found:
                raise NodeNotFound(name)
        chosen |= {node.id: node for node in found}
    return list(chosen.values())


async def act(
    ctx: ShellContext, nodes: Sequence[Node], verb: str, *, waits: bool = True, **arguments: Any
) -> Result:
    """Do ``verb`` to each node, all at once, and say how each ended; or only plan it.

    Nodes that cannot have it done to them are refused before any job begins.

    :param waits: whether the verb takes the node's lock, and so knows ``wait_s``
    :raises Interrupted: it was cancelled; the jobs were, and found out what is true
    """
    if waits:
        arguments["wait_s"] = ctx.options.wait_s
    if ctx.options.dry_run:
        return plans(ctx, [(node.name, lambda n=node: n.plan(verb, **arguments)) for node in nodes])
    for node in nodes:
        node.action(verb, **arguments)
    jobs = [ctx.cluster.submit(node, verb, **arguments) for node in nodes]
    return await outcome(ctx, jobs)


async def outcome(ctx: ShellContext, jobs: Sequence[Job]) -> Result:
    """Wait for jobs, showing how far they are; then how each ended.

    :raises VagothError: there was one job, and it failed
    :raises Interrupted: the wait was cancelled, and so were the jobs; with what they found out
    """
    waits = [asyncio.ensure_future(_end_of(job)) for job in jobs]
    try:
        with ctx.surroundings.progress(jobs):
            if waits:
                await asyncio.wait(waits)
    except asyncio.CancelledError:
        for job in jobs:
            job.cancel()
        await asyncio.wait(waits)
        result = _result(ctx, jobs)
        raise Interrupted(
            Result(result.table, failures=result.failures, exit_code=EXIT_INTERRUPTED)
        ) from None
    return _result(ctx, jobs)


async def _end_of(job: Job) -> None:
    try:
        await job
    except (Exception, asyncio.CancelledError):
        # The job keeps it; and of a cancelled one, its cancelled state.
        return


def _result(ctx: ShellContext, jobs: Sequence[Job]) -> Result:
    if len(jobs) == 1 and isinstance(error := jobs[0].error, VagothError):
        # The error says it all, unless what became of the node is in doubt.
        in_doubt = isinstance(error, OutcomeUnknown)
        if not in_doubt:
            raise error
    failures = [
        Failure(job.node if len(jobs) > 1 else "", job.error)
        for job in jobs
        if job.error is not None and not isinstance(job.error, asyncio.CancelledError)
    ]
    cancelled = any(job.state is JobState.CANCELLED for job in jobs)
    return Result(
        outcome_table(ctx.cluster.view, jobs),
        failures=failures,
        exit_code=EXIT_INTERRUPTED if cancelled else 0,
    )


def outcome_table(view: View, jobs: Sequence[Job]) -> Table:
    """How jobs ended, and what is now true of their nodes."""
    rows = []
    records = []
    for job in jobs:
        record = view.get(job.node_id)
        state = shown_state(record) if record is not None else None
        parent = view.name_of(record.parent) if record is not None else None
        said = "; ".join(job.notes)
        rows.append((record.name if record else job.node, job.state, state, parent, said))
        records.append(
            {
                "name": record.name if record is not None else job.node,
                "action": job.action,
                "outcome": job.state,
                "transaction": job.txid,
                "state": record.state if record is not None else None,
                "parent": parent,
                "error": str(job.error) if isinstance(job.error, VagothError) else None,
                "unknown": isinstance(job.error, OutcomeUnknown),
                "notes": list(job.notes),
            }
        )
    columns = (
        Column("name", "NAME", Look.NAME),
        Column("outcome", "OUTCOME", Look.STATE),
        Column("state", "STATE", Look.STATE),
        Column("parent", "PARENT", weight=1),
        Column("said", "NOTE"),
    )
    kept = len(columns) if any(row[4] for row in rows) else len(columns) - 1
    return Table("", columns[:kept], [row[:kept] for row in rows], records=records)


def plans(ctx: ShellContext, wanted: Iterable[tuple[str, Any]]) -> Result:
    """Plans as a table; those refused are failures, as they would be if run.

    :param wanted: names of nodes, and what makes the plan for each
    """
    made: list[Plan] = []
    failures: list[Failure] = []
    for name, make in wanted:
        try:
            made.append(make())
        except VagothError as error:
            failures.append(Failure(name, error))
    return Result(plan_table(made), failures=failures)


def plan_table(made: Sequence[Plan]) -> Table:
    """What would be done: steps with their hosts, then each field that would change."""
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for plan in made:
        for number, step in enumerate(plan.steps, 1):
            rows.append((plan.node, f"{plan.action} {number}", step.text, step.host or ""))
        for field, (before, after) in plan.changes.items():
            rows.append((plan.node, "change", _change(field, before, after), ""))
        if not plan.steps:
            rows.append((plan.node, plan.action, "nothing to do", ""))
        notes += [note if plan.node in note else f"{plan.node}: {note}" for note in plan.notes]
    columns = (
        Column("node", "NAME", Look.NAME),
        Column("part", "PART", weight=1),
        Column("text", "WHAT WOULD BE DONE"),
        Column("host", "HOST"),
    )
    records = [
        {
            "action": plan.action,
            "node": plan.node,
            "steps": [{"text": step.text, "host": step.host} for step in plan.steps],
            "hosts": list(plan.hosts),
            "changes": {
                field: {"before": before, "after": after}
                for field, (before, after) in plan.changes.items()
            },
            "notes": list(plan.notes),
        }
        for plan in made
    ]
    return Table("", columns, rows, records=records, notes=notes)


def _change(field: str, before: Any, after: Any) -> str:
    if isinstance(before, dict | None) and isinstance(after, dict | None) and (before or after):
        old, new = before or {}, after or {}
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ", ".join(_change(f"{field}.{key}", old.get(key), new.get(key)) for key in keys)
    return f"{field}: {_said(before)} → {_said(after)}"


def _said(value: Any) -> str:
    if value is None or value in ("", [], ()):
        return "nothing"
    if isinstance(value, list | tuple):
        return " ".join(map(_said, value))
    return shlex.quote(str(value)) if isinstance(value, str) else str(value)
