"""The command about the store itself: check, repair, compact, prune, export, import, info."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from vagoth.errors import InvalidInput, RegistryError, VagothError, nearest
from vagoth.shell.context import Result, ShellContext
from vagoth.shell.grammar import Marker, command
from vagoth.tables import Column, Look, Table
from vagoth.transaction import transaction

if TYPE_CHECKING:
    from vagoth.cluster import Cluster
    from vagoth.config import Config
    from vagoth.model import Record
    from vagoth.registry.tinydb import TinyDBRegistry

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


class Doing(Marker, frozen=True):
    """What to do with the store."""

    title: str = "check|repair|compact|prune|export|import|info"


class FileName(Marker, frozen=True):
    """A file's path."""

    title: str = "FILE"


class Age(Marker, frozen=True):
    """How old something is: ``30d``."""

    title: str = "AGE"


@command("store", needs_cluster=False)
async def store(
    ctx: ShellContext,
    what: Annotated[str, Doing()],
    file: Annotated[str | None, FileName()] = None,
    *,
    output: Annotated[str | None, FileName()] = None,
    older_than: Annotated[str | None, Age()] = None,
) -> Result:
    """Look after the store: the file that keeps all nodes, and the journal beside it.

    check lists all that is wrong with it, and needs no store that opens.

    repair saves all that is whole of a damaged store into a new one, and says what is not.

    compact has the JSON file alone hold all nodes, for plain TinyDB to read.

    prune forgets history that is older than --older-than; the nodes stay.

    export writes all nodes as JSON in a stable order.

    import adds the nodes of an export: all of them, or none if anything is in the way.

    info tells its sizes, its history, and who works on which node.

    :param what: what to do with it
    :param file: of repair, export and import
    :param output: of repair: the new store, instead of FILE
    :param older_than: of prune: an age such as 30d, 12h, 2w
    """
    does = _WHAT.get(what)
    if does is None:
        near = nearest(what, _WHAT)
        cure = f"did you mean {near}?" if near else f"there are: {', '.join(_WHAT)}"
        raise InvalidInput("store", what, "something to do with a store", cure=cure)
    given = {"FILE": file, "--output": output, "--older-than": older_than}
    takes, run = does
    for option, value in given.items():
        if value is not None and option not in takes:
            raise InvalidInput(option, value, "", message=f"store {what} takes no {option}")
    chosen = [given[option] for option in takes if given[option] is not None]
    if takes and len(chosen) != 1:
        raise InvalidInput(
            takes[-1], None, "", message=f"store {what} needs one {' or '.join(takes)}"
        )
    return await run(ctx, *chosen)


# --- what needs no store that opens -----------------------------------------------------


async def _check(ctx: ShellContext) -> Result:
    from vagoth.registry.survey import survey

    found = await asyncio.to_thread(survey, _path(ctx))
    columns = (Column("file", "FILE"), Column("place", "PLACE"), Column("problem", "PROBLEM"))
    data = {
        "path": str(found.path),
        "sound": not found.findings,
        "nodes": len(found.documents),
        "commits": len(found.pieces),
        "findings": [msgspec.structs.asdict(finding) for finding in found.findings],
    }
    if found.findings:
        rows = [(each.file, each.place, each.problem) for each in found.findings]
        return Result(Table("", columns, rows, records=data), exit_code=1)
    torn = "; a commit that was never finished stands at its end" if found.is_torn else ""
    text = f"{found.path} is sound: {_told(len(found.documents), len(found.pieces))}{torn}"
    return _said(ctx, text, data)


async def _repair(ctx: ShellContext, target: str) -> Result:
    from vagoth.registry.salvage import Salvage, repair
    from vagoth.registry.survey import survey

    def work() -> Salvage:
        return repair(survey(_path(ctx)), Path(target), dry_run=ctx.options.dry_run)

    done = await asyncio.to_thread(work)
    would = "would be" if ctx.options.dry_run else "were"
    lines = [f"{_told(done.nodes, done.commits)} {would} saved to {done.path}"]
    lines += [f"wrong: {each}" for each in done.findings]
    lines += [f"not saved: {each}" for each in done.lost]
    return _said(ctx, "\n".join(lines), msgspec.structs.asdict(done))


# --- what an open store does -------------------------------------------------------------


async def _compact(ctx: ShellContext) -> Result:
    async with _opened(ctx) as registry:
        if not ctx.options.dry_run:
            await registry.compact()
        would = "would hold" if ctx.options.dry_run else "holds"
        text = f"{registry.path} {would} all {_counted(len(registry.view), 'node')}"
        return _said(ctx, text, {"path": str(registry.path), "nodes": len(registry.view)})


async def _prune(ctx: ShellContext, age: str) -> Result:
    before = time.time() - _seconds(age)
    async with _opened(ctx) as registry:
        done = await registry.prune(before, dry_run=ctx.options.dry_run)
    would = "would be" if ctx.options.dry_run else "were"
    text = f"{_counted(done.commits, 'commit')} ({done.size_bytes} bytes) {would} forgotten"
    return _said(ctx, text, {"commits": done.commits, "size_bytes": done.size_bytes})


async def _info(ctx: ShellContext) -> Result:
    async with _opened(ctx) as registry:
        info = await registry.info()
        names = {node_id: registry.view.name_of(node_id) for node_id in info.locked}
    data = msgspec.to_builtins(info)
    data["locked"] = [{"node": names[node_id], **data["locked"][node_id]} for node_id in names]
    rows = [
        ("path", info.path),
        ("format", info.format),
        ("nodes", info.nodes),
        ("size", f"{info.size_bytes} bytes"),
        ("journal", f"{info.journal_bytes} bytes, {_counted(info.commits, 'commit')}"),
        ("oldest history", _when(info.oldest)),
        ("position", info.position),
        *((f"lock on {names[node_id]}", str(holder)) for node_id, holder in info.locked.items()),
    ]
    columns = (Column("field", "FIELD", Look.NAME), Column("value", "VALUE"))
    return Result(Table("", columns, rows, records=data))


async def _export(ctx: ShellContext, name: str) -> Result:
    from vagoth.registry.exchange import exported, is_export
    from vagoth.registry.files import read_bytes, write_whole

    async with _opened(ctx) as registry:
        records = tuple(registry.view)
    data = await asyncio.to_thread(exported, records)
    path = _named(name)

    def write() -> None:
        there = read_bytes(path)
        if there is not None and not is_export(there):
            raise InvalidInput("FILE", name, "a new file, or an export to write anew")
        if not ctx.options.dry_run:
            write_whole(path, data)

    await asyncio.to_thread(write)
    would = "would be" if ctx.options.dry_run else "were"
    text = f"{_counted(len(records), 'node')} {would} written to {path}"
    return _said(ctx, text, {"path": str(path), "nodes": len(records)})


async def _import(ctx: ShellContext, name: str) -> Result:
    from vagoth.registry import exchange
    from vagoth.registry.files import read_bytes

    data = await asyncio.to_thread(read_bytes, _named(name))
    if data is None:
        raise InvalidInput("FILE", name, "a file that is there")
    records = await asyncio.to_thread(exchange.read, data, name)
    async with _connected(ctx) as cluster:
        prepared, problems = _prepared(cluster, records)
        new, more = await asyncio.to_thread(exchange.wanted, prepared, cluster.view)
        exchange.refuse(name, problems + more)
        if not ctx.options.dry_run:
            with transaction(reason=ctx.line):
                await exchange.bring_in(cluster.registry, new)
    would = "would be" if ctx.options.dry_run else "were"
    known = len(records) - len(new)
    text = f"{_counted(len(new), 'node')} {would} added" + (
        f"; {known} are there already" if known else ""
    )
    return _said(ctx, text, {"added": [record.name for record in new], "known": known})


def _prepared(cluster: Cluster, records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """The records as their types want them; and what those have against them."""
    prepared, problems = [], []
    for record in records:
        try:
            cls = cluster.types.get(record.type, field="type")
            prepared.append(cls.prepare(record, record, cluster))
        except VagothError as error:
            problems.append(f"{record.name}: {error.message}")
    return prepared, problems


_Does = Callable[..., Awaitable[Result]]
_WHAT: Mapping[str, tuple[Sequence[str], _Does]] = {
    "check": ((), _check),
    "repair": (("FILE", "--output"), _repair),
    "compact": ((), _compact),
    "prune": (("--older-than",), _prune),
    "export": (("FILE",), _export),
    "import": (("FILE",), _import),
    "info": ((), _info),
}


# --- which store, and words about it -------------------------------------------------------


def _config(ctx: ShellContext) -> Config:
    from vagoth.config import load_config

    options = ctx.options
    return load_config(options.config, store=options.store, sim=options.sim)


def _path(ctx: ShellContext) -> Path:
    found = Path(ctx.cluster.registry.location) if ctx.cluster else _config(ctx).store
    return found.expanduser().resolve()


def _named(name: str) -> Path:
    return Path(name).expanduser().absolute()


@asynccontextmanager
async def _opened(ctx: ShellContext) -> AsyncIterator[TinyDBRegistry]:
    """The registry of the shell's cluster; on the command line one of its own."""
    from vagoth.registry.tinydb import TinyDBRegistry

    if ctx.cluster:
        found = ctx.cluster.registry
        if not isinstance(found, TinyDBRegistry):
            raise InvalidInput("store", found.location, "a store in a TinyDB file")
        yield found
        return
    path = _path(ctx)
    if not path.exists() and not path.with_name(f"{path.name}.journal").exists():
        raise RegistryError(f"there is no store at {path}", cure="name another with --store")
    async with TinyDBRegistry(path) as registry:
        yield registry


@asynccontextmanager
async def _connected(ctx: ShellContext) -> AsyncIterator[Cluster]:
    """The shell's cluster; on the command line one of its own, with no hosts made up for it."""
    if ctx.cluster:
        yield ctx.cluster
        return
    from vagoth.cluster import connect

    async with connect(ctx.options.config, store=_path(ctx)) as cluster:
        yield cluster


def _said(ctx: ShellContext, text: str, data: Any) -> Result:
    return Result(Table("", (), [], records=data)) if ctx.options.json else Result(text=text)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _told(nodes: int, commits: int) -> str:
    return f"{_counted(nodes, 'node')}, {_counted(commits, 'commit')}"


def _when(then: float | None) -> str | None:
    if then is None:
        return None
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(then))


def _seconds(age: str) -> float:
    match = _AGE.fullmatch(age)
    if match is None:
        raise InvalidInput("--older-than", age, "an age such as 30d, 12h, 2w")
    return float(match[1]) * _UNITS[match[2]]
