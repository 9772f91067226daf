"""Commands that only look: list, tree, info. They answer from the view and ask no host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from vagoth.errors import InvalidInput, nearest
from vagoth.model import Record, State
from vagoth.shell.context import Result, ShellContext
from vagoth.shell.grammar import (
    KeyArg,
    Moment,
    Names,
    StateName,
    TagArg,
    TenantName,
    TypeName,
    command,
)
from vagoth.tables import Column, Look, Table, alarms, as_dict, is_pending, node_table, shown_state
from vagoth.view import View, is_glob

if TYPE_CHECKING:
    from vagoth.history import Snapshot


@command("list")
async def list_nodes(
    ctx: ShellContext,
    glob: Annotated[str | None, Names(title="GLOB", globs=True)] = None,
    *,
    type: Annotated[str | None, TypeName()] = None,
    state: Annotated[str | None, StateName()] = None,
    tenant: Annotated[str | None, TenantName()] = None,
    tag: Annotated[tuple[str, ...], TagArg()] = (),
    parent: Annotated[str | None, Names()] = None,
    key: Annotated[str | None, KeyArg()] = None,
    at: Annotated[str | None, Moment()] = None,
) -> Result:
    """List nodes, those that meet every condition.

    :param glob: a name, or a pattern such as 'web*'
    :param type: of this type
    :param state: in this state
    :param tenant: of this tenant
    :param tag: with this tag; without a value: whatever it is
    :param parent: carried by this node
    :param key: that holds this key
    :param at: as it was then: 15m, 2h or 1d ago, at an ISO time, or right after a transaction
    """
    past = await ctx.cluster.at(at) if at is not None else None
    view = ctx.cluster.view if past is None else past
    if glob is not None and not is_glob(glob):
        glob = view.find(glob).name
    if type is not None and not view.count("type", type):
        ctx.cluster.types.get(type, field="--type")
    if state is not None:
        _check_state(view, state)
    records = view.select(
        glob,
        type=type,
        state=state,
        tenant=tenant,
        tags=dict(_tag(text) for text in tag),
        parent=view.find(parent).id if parent is not None else None,
        key=key,
    )
    if past is not None:
        return Result(_without("seen", node_table(records, past, title=_title(past))))
    return Result(node_table(records, view, looked_at=ctx.cluster.context.looks.of, title=""))


def _without(key: str, table: Table) -> Table:
    kept = [index for index, column in enumerate(table.columns) if column.key != key]
    rows = [tuple(row[index] for index in kept) for row in table.rows]
    return replace(table, columns=[table.columns[index] for index in kept], rows=rows)


def _title(past: Snapshot) -> str:
    from vagoth.history import written

    return f"as it was after transaction {past.txid} at {written(past.time)}"


def _tag(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise InvalidInput("--tag", text, "KEY or KEY=VALUE")
    return name, value


def _check_state(view: View, state: str) -> None:
    known = sorted({*State, *view.values("state")})
    if state not in known:
        near = nearest(state, known)
        cure = f"did you mean {near}?" if near else f"there are: {', '.join(known)}"
        raise InvalidInput("--state", state, "a state", cure=cure)


@command("tree")
async def tree(ctx: ShellContext) -> Result:
    """Show hosts and what they carry, then the nodes that nothing carries."""
    view = ctx.cluster.view
    roots = [record for record in view.select() if record.parent is None]
    roots.sort(key=lambda record: record.type != "hv")
    placed = [root for root in roots if root.type != "vm"]
    unplaced = [root for root in roots if root.type == "vm"]
    rows = [row for root in placed for row in _branch(view, root, "", "")]
    records = [_nested(view, root) for root in placed]
    if unplaced:
        rows.append(("(no host)", None, None, None))
        rows += _twigs(view, unplaced, "")
        records += [_nested(view, root) for root in unplaced]
    columns = (
        Column("name", "NAME", Look.NAME),
        Column("type", "TYPE", weight=1),
        Column("state", "STATE", Look.STATE),
        Column("tags", "TAGS", Look.LIST, weight=2),
    )
    return Result(Table("", columns, rows, records=records))


_Row = tuple[str | None, ...] | tuple[Any, ...]


def _branch(view: View, record: Record, before: str, below: str) -> Iterator[_Row]:
    yield before + record.name, record.type, shown_state(record), record.tags
    yield from _twigs(view, view.children(record.id), below)


def _twigs(view: View, records: Sequence[Record], indent: str) -> Iterator[_Row]:
    for record in records:
        last = record is records[-1]
        before, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
        yield from _branch(view, record, indent + before, indent + below)


def _nested(view: View, record: Record) -> dict[str, Any]:
    return {
        "name": record.name,
        "type": record.type,
        "state": record.state,
        "tags": record.tags,
        "children": [_nested(view, child) for child in view.children(record.id)],
    }


@command("info")
async def info(ctx: ShellContext, name: Annotated[str, Names()]) -> Result:
    """Show all that is known of one node.

    :param name: the node's name, id, or one of its keys
    """
    record = ctx.cluster.view.find(name)
    rows = [row for row in _fields(ctx, record) if row[1] or row[1] in (0, False)]
    columns = (Column("field", "FIELD", Look.NAME), Column("value", "VALUE"))
    return Result(Table("", columns, rows, records=as_dict(record, ctx.cluster.view)))


def _fields(ctx: ShellContext, record: Record) -> Iterator[tuple[str, Any]]:
    from vagoth.render import ago

    view = ctx.cluster.view
    yield "id", record.id
    yield "name", record.name
    yield "type", record.type
    yield "state", f"{shown_state(record)}, for {ago(record.state_since)}"
    for alarm in alarms(record, view):
        yield "note", alarm
    if is_pending(record):
        yield "pending", "it is as it was defined before, until it is stopped and started"
    yield "tenant", record.tenant
    yield "parent", view.name_of(record.parent)
    yield "children", [child.name for child in view.children(record.id)]
    yield "tags", record.tags
    yield "keys", record.keys
    for link, targets in record.links.items():
        yield f"link {link}", [view.name_of(target) for target in targets]
    yield from _flat(record.definition, "")
    yield from _flat(record.metadata, "metadata.")
    if looked_at := ctx.cluster.context.looks.of(record.parent or record.id):
        yield "last look", f"{ago(looked_at)} ago"
    yield "created", f"{ago(record.created)} ago"
    yield "changed", f"{ago(record.updated)} ago"


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Leaves of nested data under the dotted paths by which ``set`` reaches them."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}{'.' if path and path[-1] != '.' else ''}{key}")
    elif isinstance(value, list | tuple) and any(isinstance(i, Mapping | list) for i in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    else:
        yield path, value
