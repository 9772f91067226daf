"""The store beside plain TinyDB, TinyDB that caches, SQLite, and a bare append with fsync.

Each contender keeps the same nodes, as a fleet has them, and does the same: one durable change of
one node; look-ups by id, by name and by key; opening it and counting its nodes. A process of its
own for each keeps that store open; see :mod:`benchmarks.store_programs`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks.catalogue import Entrants
from benchmarks.programs import ROOT, kept_open
from benchmarks.setting import Setting
from benchmarks.timing import BenchmarkFailed, Contender

SIZES = (1_000, 10_000, 100_000)
PROGRAMS = "benchmarks.store_programs"
SHOWN = {
    "vagoth": {
        "update": "await registry.commit([Put(node)], expect=…)",
        "lookup": "view.get(id), view.by_name(name), view.by_key(key)",
        "open": "await TinyDBRegistry(path).open()",
    },
    "tinydb": {
        "update": "table.update({…}, where('id') == id); fsync",
        "lookup": "table.search(where('id') == id), name, keys.any([key])",
        "open": "len(TinyDB(path).table('nodes'))",
    },
    "caching": {
        "update": "table.update({…}, where('id') == id)   # in memory: not durable",
        "lookup": "table.search(where('id') == id), name, keys.any([key])",
        "open": "len(TinyDB(path, CachingMiddleware(JSONStorage)).table('nodes'))",
    },
    "sqlite": {
        "update": "UPDATE … WHERE id = ? AND revision = ?   # in a worker thread",
        "lookup": "SELECT … WHERE id = ?, name = ?, key = ?   # in a worker thread",
        "open": "sqlite3.connect(path); SELECT count(*)",
    },
    "append": {"update": "pwrite of 1 KB; fsync   # in a worker thread"},
    "decode": {"open": "msgspec.json.decode(path.read_bytes())"},
}


@asynccontextmanager
async def entrants(setting: Setting) -> AsyncIterator[Entrants]:
    """One durable change of one node; and how soon another process sees one."""
    async with contenders("update", ("tinydb", "caching", "sqlite", "append"), setting) as found:
        folder = setting.folder / f"store-{SIZES[0]}"
        seen = await _said("seen", str(folder), setting=setting)
        yield Entrants(found, {}, f"another process sees a commit {seen}")


@asynccontextmanager
async def contenders(
    what: str, peers: Sequence[str], setting: Setting
) -> AsyncIterator[list[Contender]]:
    """Vagoth and those peers, each with a store of each size."""
    found = []
    async with AsyncExitStack() as stack:
        for nodes in SIZES:
            folder = setting.folder / f"store-{nodes}"
            if not folder.exists():
                await _said("make", str(nodes), str(folder), setting=setting)
            found += [
                await stack.enter_async_context(
                    kept_open(
                        f"{kind} {nodes:,}",
                        PROGRAMS,
                        [kind, what, str(folder)],
                        env=setting.env,
                        shown=SHOWN[kind][what],
                        # The smallest is a peer of the others: what a change costs at each size.
                        is_ours=kind == "vagoth" and nodes > SIZES[0],
                    )
                )
                for kind in ("vagoth", *peers)
            ]
        yield found


async def _said(*arguments: str, setting: Setting) -> str:
    """What one of the programs has to say, at its end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", PROGRAMS, *arguments),
        env=setting.env,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise BenchmarkFailed(f"{PROGRAMS} {' '.join(arguments)}: status {process.returncode}")
    return said.decode().strip()


async def sizes(setting: Setting) -> str:
    """Bytes for each node, on disk and of memory."""
    told = []
    for nodes in SIZES:
        folder = setting.folder / f"store-{nodes}"
        files = {
            "Vagoth": ("vagoth.json", "vagoth.json.journal"),
            "TinyDB": ("tinydb.json",),
            "SQLite": ("sqlite.db", "sqlite.db-wal"),
        }
        disk = ", ".join(
            f"{kind} {sum(_size(folder / file) for file in names) / nodes:.0f}"
            for kind, names in files.items()
        )
        memory = await _said("memory", str(folder), setting=setting)
        told.append(f"{nodes:,} nodes: {disk} bytes each on disk, Vagoth {memory} of memory")
    return "; ".join(told)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
