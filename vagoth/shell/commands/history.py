"""Commands about what was: history, and undo, which takes a transaction back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import msgspec

from vagoth.errors import InvalidInput
from vagoth.model import Commit, Record, RecordChange
from vagoth.shell.commands.acting import plan_table
from vagoth.shell.commits import commit_data
from vagoth.shell.context import Result, ShellContext
from vagoth.shell.grammar import Moment, Names, Number, TimeArg, TxId, command
from vagoth.tables import Column, Look, Table
from vagoth.view import View

#: How many commits are shown where nothing says how many.
SHOWN = 50
_VALUE_LENGTH = 40
#: Fields that are one plain value.
_PLAIN = ("name", "type", "parent", "state", "alarm", "tenant")
_NameOf = Callable[[str | None], str | None]


@command("history")
async def history(
    ctx: ShellContext,
    name: Annotated[str | None, Names(title="NAME|diff")] = None,
    *moments: Annotated[str, Moment()],
    tx: Annotated[str | None, TxId()] = None,
    since: Annotated[str | None, TimeArg()] = None,
    limit: Annotated[int | None, Number()] = None,
) -> Result:
    """Show what was changed, newest first: when, what, by whom, in which transaction.

    history diff TIME [TIME] shows what differs between two moments, the second being now if it is
    left out. A TIME is 90s, 15m, 1h, 2d or 1w ago, or an ISO time such as 2024-05-01T12:30:00
    (local, unless it ends in Z or +02:00). A transaction's id means right after it.

    :param name: of this node; one that was deleted is known by its last name, and by its id
    :param moments: after diff: the moments to compare
    :param tx: in this transaction
    :param since: from this time on
    :param limit: the newest N commits (default: 50, and all with --tx, --since or --json)
    """
    if name == "diff" and moments:
        return await _diff(ctx, moments, given=[tx, since, limit])
    if moments:
        raise InvalidInput(
            "history",
            moments[0],
            "",
            message=f"history takes no further argument: {moments[0]!r}",
            cure="history diff TIME compares moments",
        )
    if name == "diff" and ctx.cluster.view.by_name(name) is None:
        raise InvalidInput(
            "history", None, "", message="history diff: TIME|TXID is missing", cure="help history"
        )
    if limit is not None and limit < 1:
        raise InvalidInput("--limit", limit, "a number from 1 on")
    is_whole = limit is not None or tx or since is not None or ctx.options.json
    node_id = await ctx.cluster.past_id(name) if name is not None else None
    found = ctx.cluster.history(
        node=node_id, txid=tx, since=since, limit=limit if is_whole else SHOWN + 1
    )
    commits = [_narrowed(commit, node_id) async for commit in found]
    is_cut = not is_whole and len(commits) > SHOWN
    table = commit_table(commits[:SHOWN] if is_cut else commits, ctx.cluster.view)
    if is_cut:
        note = f"these are the newest {SHOWN} commits: --limit or --since shows more"
        table = replace(table, notes=[note])
    return Result(table)


def _narrowed(commit: Commit, node_id: str | None) -> Commit:
    """The commit with what it did to one node alone: a poll may change thousands in one."""
    if node_id is None:
        return commit
    changes = tuple(change for change in commit.changes if change.record.id == node_id)
    return msgspec.structs.replace(commit, changes=changes)


async def _diff(ctx: ShellContext, moments: tuple[str, ...], given: Iterable[object]) -> Result:
    if len(moments) > 2 or any(each is not None for each in given):
        raise InvalidInput(
            "history", None, "", message="history diff compares two moments, and takes no option"
        )
    from vagoth.history import differences

    before = await ctx.cluster.at(moments[0])
    after = await ctx.cluster.at(moments[1]) if len(moments) == 2 else ctx.cluster.view
    changes = differences(before, after)
    return Result(changes_table(changes, after, before))


@command("undo")
async def undo(ctx: ShellContext, txid: Annotated[str, TxId()]) -> Result:
    """Take a transaction back, by a new one; undoing that one does it again.

    Only the registry is changed: what a host would have to do is refused, with the command that
    does it. So is what later changes stand on. What others changed beside it stays.

    :param txid: the transaction, as history shows it
    """
    if ctx.options.dry_run:
        plans = await ctx.cluster.plan_undo(txid)
        table = plan_table(plans)
        return Result(table if plans else replace(table, notes=[_nothing(txid)]))
    commit = await ctx.cluster.undo(txid, wait_s=ctx.options.wait_s)
    view = ctx.cluster.view
    if commit is None:
        data: dict[str, Any] = {"undone": txid, "transaction": None, "changes": []}
        return Result(replace(changes_table([], view), records=data, notes=[_nothing(txid)]))
    table = changes_table(commit.changes, view)
    data = {"undone": txid, **commit_data(commit, view)}
    note = f"this is transaction {commit.txid}: undo {commit.txid} does it again"
    return Result(replace(table, records=data, notes=[note]))


def _nothing(txid: str) -> str:
    return (
        f"there is nothing to take back: what {txid} changed is as it was before,"
        " or was only seen on hosts"
    )


# --- commits and changes as tables ------------------------------------------------------------


def commit_table(commits: Iterable[Commit], view: View) -> Table:
    """A row for each record that a commit changed, in the order given; all of it as data.

    Nodes that are gone are called what they were last called in these commits.
    """
    from vagoth.history import written

    rows: list[tuple[object, ...]] = []
    records = []
    gone: dict[str, str] = {}
    for commit in commits:
        for change in commit.changes:
            if change.before is not None:
                gone.setdefault(change.before.id, change.before.name)
        by = f"{commit.source}: {commit.reason}" if commit.reason else commit.source
        for change in commit.changes:
            what = summary(change, _names(view, gone))
            name = change.record.name
            at = written(commit.time)
            rows.append((commit.time, name, what, by, commit.txid, at))
        records.append(commit_data(commit, view))
    columns = (
        Column("time", "AGO", Look.TIME),
        Column("name", "NAME", Look.NAME),
        Column("change", "CHANGE"),
        Column("by", "BY", weight=2),
        Column("transaction", "TRANSACTION", Look.NAME),
        Column("at", "TIME", Look.NAME, weight=3),
    )
    return Table("", columns, rows, records=records)


def changes_table(changes: Iterable[RecordChange], view: View, before: View | None = None) -> Table:
    """A row for each record that differs.

    :param before: the view in which nodes that are gone still have their names
    """
    changes = list(changes)
    gone = {record.id: record.name for record in before or ()}
    rows = [(change.record.name, summary(change, _names(view, gone))) for change in changes]
    commit = Commit(position="", txid="", time=0.0, source="", reason="", changes=tuple(changes))
    columns = (Column("name", "NAME", Look.NAME), Column("change", "CHANGE"))
    return Table("", columns, rows, records=commit_data(commit, view)["changes"])


def _names(view: View, gone: Mapping[str, str]) -> _NameOf:
    def name_of(node_id: str | None) -> str | None:
        if node_id is None or node_id in view:
            return view.name_of(node_id)
        return gone.get(node_id, node_id)

    return name_of


def summary(change: RecordChange, name_of: _NameOf) -> str:
    """What happened to a record, in one line: each field that people read, before → after."""
    before, after = change.before, change.after
    if after is None:
        return "deleted"
    if before is None:
        return f"new {after.type}"
    parts = [*_parts(before, after, name_of)]
    if not parts and before.intent != after.intent:
        intents = ((before.intent, "over"), (after.intent, "begun"))
        parts = [f"{intent.action} {what}" for intent, what in intents if intent is not None]
    return ", ".join(parts) or ", ".join(f"{field} changed" for field in change.fields())


def _parts(before: Record, after: Record, name_of: _NameOf) -> Iterator[str]:
    for field in _PLAIN:
        old, new = getattr(before, field), getattr(after, field)
        if old != new:
            if field == "parent":
                old, new = name_of(old), name_of(new)
            yield _change(field, old, new)
    yield from _items("keys", before.keys, after.keys)
    for link in sorted({*before.links, *after.links}):
        sides = (each.links.get(link, ()) for each in (before, after))
        old, new = ([name_of(target) or target for target in side] for side in sides)
        yield from _items(f"links.{link}", old, new)
    for field in ("tags", "definition", "metadata"):
        yield from _leaves(field, getattr(before, field), getattr(after, field))


def _leaves(path: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in {**before, **after}:
            yield from _leaves(f"{path}.{key}", before.get(key), after.get(key))
    elif before != after:
        yield _change(path, before, after)


def _items(path: str, before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    told = [f"+{item}" for item in after if item not in before]
    told += [f"-{item}" for item in before if item not in after]
    if told:
        yield f"{path}: {' '.join(told)}"


def _change(path: str, before: Any, after: Any) -> str:
    return f"{path}: {_said(before)} → {_said(after)}"


def _said(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) and value else msgspec.json.encode(value).decode()
    if len(text) <= _VALUE_LENGTH:
        return text
    return "{…}" if isinstance(value, Mapping) else text[: _VALUE_LENGTH - 1] + "…"
