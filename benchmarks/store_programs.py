"""The other end of :mod:`benchmarks.store`: ``… make NODES FOLDER``, or ``… KIND WHAT FOLDER``.

For each line of standard input one round is done, and the seconds that one operation took are
printed: the mean of as many as make a round that can be measured.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
from tinydb import TinyDB, where
from tinydb.middlewares import CachingMiddleware
from tinydb.storages import JSONStorage

from benchmarks.rounds import say
from benchmarks.setting import VMS_PER_HOST
from vagoth.model import Put, Record, State
from vagoth.registry.tinydb import TinyDBRegistry

Operation = Callable[[], Awaitable[None]]
#: Operations in a round: enough to be measured, and few enough to be waited for.
ROUNDS = {
    ("vagoth", "update"): 20,
    ("sqlite", "update"): 20,
    ("append", "update"): 20,
    ("vagoth", "lookup"): 2000,
    ("sqlite", "lookup"): 50,
    ("caching", "update"): 2,
}
SEEN = 100
_STEP = 7919  # a prime, so that no node is met twice soon


def fleet(nodes: int) -> list[Record]:
    """That many nodes: a host for each fifty VMs, hosts first."""
    hosts = [
        Record(id=f"id-hv{n}", name=f"hv{n}", type="hv", state=State.UP)
        for n in range(1, max(1, nodes // (VMS_PER_HOST + 1)) + 1)
    ]
    return hosts + [
        Record(
            id=f"id-web{n}",
            name=f"web{n}",
            state=State.RUNNING if n % 5 else State.STOPPED,
            parent=hosts[n % len(hosts)].id,
            tags={"env": "prod" if n % 3 else "test", "rack": f"b{n % 7}"},
            keys=(f"asset:{n}", f"ip:10.{n // 62500}.{n // 250 % 250}.{n % 250 + 1}"),
            definition={"memory": "512MiB", "vcpus": 2, "nics": [{"network": "lan"}]},
        )
        for n in range(nodes - len(hosts))
    ]


def made(folder: Path, nodes: int) -> None:
    """The same nodes in each store."""
    folder.mkdir()
    found = fleet(nodes)
    with TinyDB(folder / "tinydb.json") as db:
        plain = [msgspec.json.decode(msgspec.json.encode(record)) for record in found]
        db.table("nodes").insert_multiple(plain)
    del plain
    db_ = _sqlite(folder / "sqlite.db")
    db_.execute(
        "CREATE TABLE nodes (id TEXT PRIMARY KEY, name TEXT UNIQUE, revision INTEGER, node TEXT)"
    )
    db_.execute("CREATE TABLE keys (key TEXT PRIMARY KEY, id TEXT)")
    db_.execute("BEGIN")
    for record in found:
        row = (record.id, record.name, msgspec.json.encode(record).decode())
        db_.execute("INSERT INTO nodes VALUES (?, ?, 1, ?)", row)
        db_.executemany("INSERT INTO keys VALUES (?, ?)", [(key, record.id) for key in record.keys])
    db_.execute("COMMIT")
    db_.close()

    asyncio.run(_filled(folder / "vagoth.json", found))


async def _filled(path: Path, nodes: list[Record]) -> None:
    async with TinyDBRegistry(path) as registry:
        for start in range(0, len(nodes), registry.max_changes):
            some = nodes[start : start + registry.max_changes]
            expect = {record.id: None for record in some}
            await registry.commit([Put(record) for record in some], expect=expect)
        await registry.prune(float("inf"))


async def memory(folder: Path) -> None:
    """Say how many bytes of memory each node costs while Vagoth has the store open."""
    before = _memory()
    async with TinyDBRegistry(folder / "vagoth.json") as registry:
        gc.collect()
        say(f"{(_memory() - before) / len(registry.view):.0f}")


def _memory() -> int:
    """What this process holds of memory that is its own, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _picked(nodes: list[Record]) -> Iterator[Record]:
    return (nodes[number * _STEP % len(nodes)] for number in count())


# --- Vagoth -------------------------------------------------------------------------------


async def vagoth_update(folder: Path) -> Operation:
    """One commit of one node's metadata."""
    registry = TinyDBRegistry(folder / "vagoth.json")
    await registry.open()
    ids = [record.id for record in registry.view if record.type == "vm"]
    numbers = count()

    async def run() -> None:
        number = next(numbers)
        record = registry.view.get(ids[number * _STEP % len(ids)])
        assert record is not None
        after = msgspec.structs.replace(record, metadata={"n": number})
        await registry.commit([Put(after)], expect={record.id: record.revision})

    return run


async def vagoth_lookup(folder: Path) -> Operation:
    """One look-up each by id, name and key."""
    registry = TinyDBRegistry(folder / "vagoth.json")
    await registry.open()
    nodes = _picked([record for record in registry.view if record.keys])
    view = registry.view

    async def run() -> None:
        node = next(nodes)
        assert view.get(node.id) is view.by_name(node.name) is view.by_key(node.keys[0])

    return run


async def vagoth_open(folder: Path) -> Operation:
    """Open and close it: closing folds nothing, as nothing was committed."""

    async def run() -> None:
        async with TinyDBRegistry(folder / "vagoth.json") as registry:
            assert len(registry.view)

    return run


async def decode_open(folder: Path) -> Operation:
    """The floor for opening: the same file as plain data, read and decoded, in a thread."""

    def work() -> None:
        assert msgspec.json.decode((folder / "vagoth.json").read_bytes())

    async def run() -> None:
        await asyncio.to_thread(work)

    return run


# --- TinyDB -------------------------------------------------------------------------------


class _Durable(JSONStorage):
    """TinyDB's own storage, with the fsync that a change needs to be durable."""

    def write(self, data: dict[str, dict[str, Any]]) -> None:
        super().write(data)
        os.fsync(self._handle.fileno())


def _tinydb(folder: Path, kind: str) -> TinyDB:
    cached: Any = CachingMiddleware
    storage = cached(JSONStorage) if kind == "caching" else _Durable
    return TinyDB(folder / "tinydb.json", storage=storage)


def _tinydb_nodes(db: TinyDB) -> list[dict[str, Any]]:
    return [dict(document) for document in db.table("nodes").all() if document["keys"]]


async def tinydb_update(folder: Path, kind: str = "tinydb") -> Operation:
    """One update of one node's metadata."""
    db = _tinydb(folder, kind)
    nodes, numbers = _tinydb_nodes(db), count()

    async def run() -> None:
        number = next(numbers)
        node = nodes[number * _STEP % len(nodes)]
        assert db.table("nodes").update({"metadata": {"n": number}}, where("id") == node["id"])

    return run


async def tinydb_lookup(folder: Path, kind: str = "tinydb") -> Operation:
    """One search each by id, name and key."""
    db = _tinydb(folder, kind)
    nodes, numbers = _tinydb_nodes(db), count()
    # Its cache of queries answers only what was asked before, and no change since.
    table = db.table("nodes", cache_size=0)

    async def run() -> None:
        node = nodes[next(numbers) * _STEP % len(nodes)]
        for query in (
            where("id") == node["id"],
            where("name") == node["name"],
            where("keys").any([node["keys"][0]]),
        ):
            assert len(table.search(query)) == 1

    return run


async def tinydb_open(folder: Path, kind: str = "tinydb") -> Operation:
    """Open it and count its nodes, which reads all of it."""

    async def run() -> None:
        with _tinydb(folder, kind) as db:
            assert len(db.table("nodes"))

    return run


# --- SQLite, and the bare append ----------------------------------------------------------


def _sqlite(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db


_thread = ThreadPoolExecutor(1)


async def sqlite_update(folder: Path) -> Operation:
    """The same change: the node as JSON, if it is at the revision that was read."""
    db = _sqlite(folder / "sqlite.db")
    rows = db.execute("SELECT id, revision, node FROM nodes").fetchall()
    revisions = {node_id: revision for node_id, revision, _ in rows}
    nodes = [msgspec.json.decode(node, type=Record) for _, _, node in rows]
    numbers = count()

    def work(node: Record, revision: int) -> None:
        text = msgspec.json.encode(node).decode()
        db.execute("BEGIN IMMEDIATE")
        changed = db.execute(
            "UPDATE nodes SET node = ?, revision = revision + 1 WHERE id = ? AND revision = ?",
            (text, node.id, revision),
        )
        assert changed.rowcount == 1
        db.execute("COMMIT")

    async def run() -> None:
        number = next(numbers)
        node = nodes[number * _STEP % len(nodes)]
        after = msgspec.structs.replace(node, metadata={"n": number})
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(_thread, work, after, revisions[node.id])
        revisions[node.id] += 1

    return run


async def sqlite_lookup(folder: Path) -> Operation:
    """One SELECT each by id, name and key; the node decoded."""
    db = _sqlite(folder / "sqlite.db")
    rows = db.execute("SELECT node FROM nodes").fetchall()
    nodes = _picked([node for (row,) in rows if (node := _record(row)).keys])

    def work(node: Record) -> None:
        for condition, value in (
            ("id = ?", node.id),
            ("name = ?", node.name),
            ("id = (SELECT id FROM keys WHERE key = ?)", node.keys[0]),
        ):
            (text,) = db.execute(f"SELECT node FROM nodes WHERE {condition}", (value,)).fetchone()
            assert _record(text).id == node.id

    async def run() -> None:
        await asyncio.get_running_loop().run_in_executor(_thread, work, next(nodes))

    return run


def _record(text: str) -> Record:
    return msgspec.json.decode(text, type=Record)


async def sqlite_open(folder: Path) -> Operation:
    """Open it and count its nodes."""

    async def run() -> None:
        db = _sqlite(folder / "sqlite.db")
        assert db.execute("SELECT count(*) FROM nodes").fetchone()[0]
        db.close()

    return run


async def append_update(folder: Path) -> Operation:
    """The floor for a durable change: 1 KB appended to a file and synced, in a thread."""
    fd = os.open(folder / "append", os.O_RDWR | os.O_CREAT | os.O_APPEND)

    def work() -> None:
        os.write(fd, b"x" * 1024)
        os.fsync(fd)

    async def run() -> None:
        await asyncio.get_running_loop().run_in_executor(_thread, work)

    return run


# --- what another process sees ------------------------------------------------------------


async def write(folder: Path) -> None:
    """Commit a hundred times, each saying when it was begun."""
    async with TinyDBRegistry(folder / "vagoth.json") as registry:
        [record, *_] = registry.view.select(type="vm")
        for number in range(SEEN):
            await asyncio.sleep(random.uniform(0.02, 0.08))
            await registry.update(
                record.id,
                lambda now, n=number: msgspec.structs.replace(  # type: ignore[misc]
                    now, metadata={"number": n, "at": time.time()}
                ),
            )


async def seen(folder: Path) -> None:
    """Say how soon another process's commits were in our view, from the moment each began."""
    async with TinyDBRegistry(folder / "vagoth.json") as registry, registry.watch() as watch:
        writer = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.store_programs", "write", str(folder))
        )
        took = []
        async for commit in watch:
            metadata = commit.changes[0].record.metadata
            took.append(time.time() - metadata["at"])
            if metadata["number"] == SEEN - 1:
                break
        await writer.wait()
    took.sort()
    within = sum(each <= 0.05 for each in took)
    say(f"within 50 ms {within} of {SEEN} times (median {took[SEEN // 2] * 1000:.0f} ms)")


async def serve(kind: str, what: str, folder: Path) -> None:
    """Do a round for each line of standard input."""
    if kind in ("tinydb", "caching"):
        operation = await globals()[f"tinydb_{what}"](folder, kind)
    else:
        operation = await globals()[f"{kind}_{what}"](folder)
    times = ROUNDS.get((kind, what), 1)
    say("ready")
    while await asyncio.to_thread(sys.stdin.readline):
        begun = time.perf_counter()
        for _ in range(times):
            await operation()
        say(repr((time.perf_counter() - begun) / times))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", nodes, folder]:
            made(Path(folder), int(nodes))
        case ["write", folder]:
            asyncio.run(write(Path(folder)))
        case ["memory", folder]:
            asyncio.run(memory(Path(folder)))
        case ["seen", folder]:
            asyncio.run(seen(Path(folder)))
        case [kind, what, folder]:
            asyncio.run(serve(kind, what, Path(folder)))
            # Not by its end: what caches would now write its file.
            os._exit(0)
