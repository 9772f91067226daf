"""Processes that use a store at the same time as a test, and may be killed at any moment.

They are forked from a server that has everything imported, so that each costs milliseconds.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

from vagoth.errors import StaleRevision, Taken
from vagoth.model import Put, Record
from vagoth.registry import folder
from vagoth.registry.tinydb import TinyDBRegistry

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.registry.processes"])


class Child(NamedTuple):
    """A process, and our end of a pipe to it."""

    process: ForkServerProcess
    pipe: Connection

    def end(self) -> None:
        """Kill it, if it has not ended, and wait until it is gone."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def start(target: Callable[..., None], path: Path, *args: Any) -> Child:
    """Run ``target(path, pipe, *args)`` in a process."""
    ours, theirs = _context.Pipe()
    process = _context.Process(target=target, args=(path, theirs, *args), daemon=True)
    process.start()
    theirs.close()
    return Child(process, ours)


def keep_writing(path: Path, pipe: Connection, name: str) -> None:
    """Commit pairs of records with ever higher numbers; report each number once it is committed.

    Every other one takes a key that all writers want, if nobody seems to have it.

    Folds nearly all the time, so that a kill often meets it.
    """
    folder.FOLD_AFTER_S = 0.002

    async def run() -> None:
        async with TinyDBRegistry(path) as registry:
            while True:
                old = [registry.view.get(f"{name}-{side}") for side in ("left", "right")]
                number = old[0].metadata["number"] + 1 if old[0] is not None else 1
                metadata = {"number": number, "filler": "x" * (number * 37 % 3000)}
                wanted = f"ip:{number % 5}"
                holder = registry.view.by_key(wanted)
                has_it = number % 2 and (holder is None or holder.id == f"{name}-left")
                new = [
                    Record(
                        id=f"{name}-{side}",
                        name=f"{name}-{side}",
                        metadata=metadata,
                        keys=(wanted,) if has_it and side == "left" else (),
                    )
                    for side in ("left", "right")
                ]
                expect = {
                    after.id: before.revision if before is not None else None
                    for before, after in zip(old, new, strict=True)
                }
                # What our forerunner wrote and did not report may arrive after we have opened; and
                # one of the others may have the key.
                with suppress(StaleRevision, Taken):
                    await registry.commit([Put(record) for record in new], expect=expect)
                    pipe.send(number)
                if number % 4 == 0:
                    await asyncio.sleep(0.004)

    asyncio.run(run())


def race(path: Path, pipe: Connection, me: str, count: int) -> None:
    """Try to get ``count`` names and keys that others want too; report which were got."""

    async def run() -> list[int]:
        got = []
        async with TinyDBRegistry(path) as registry:
            pipe.send("ready")
            pipe.recv()
            for number in range(count):
                record = Record(
                    id=f"{me}-{number}",
                    name=f"same{number}" if number % 2 else f"{me}-{number}",
                    keys=() if number % 2 else (f"ip:{number}",),
                )
                try:
                    await registry.commit([Put(record)], expect={record.id: None})
                except Taken:
                    continue
                got.append(number)
        return got

    pipe.send(asyncio.run(run()))


def hold(path: Path, pipe: Connection, node_id: str) -> None:
    """Hold a node's lock until killed."""

    async def run() -> None:
        async with TinyDBRegistry(path) as registry, registry.lock(node_id):
            pipe.send("held")
            await asyncio.Event().wait()

    asyncio.run(run())
