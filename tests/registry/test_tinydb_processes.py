"""Several processes at one store: racing, killed, and never the worse for it.

``VAGOTH_KILLS=1000 pytest --timeout=0 tests/registry/test_tinydb_processes.py`` runs the full
number of kills.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import tinydb

from tests.registry.conformance import node, put
from tests.registry.processes import Child, hold, keep_writing, race, start
from vagoth.errors import Busy
from vagoth.registry.tinydb import TinyDBRegistry

KILLS = int(os.environ.get("VAGOTH_KILLS", "40"))
WRITERS = ("a", "b", "c", "d")


def acknowledged(child: Child) -> int:
    """The last number that a killed writer reported."""
    last = 0
    try:
        while True:
            last = child.pipe.recv()
    except EOFError:
        return last


async def test_of_two_processes_racing_for_a_name_or_key_one_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    children = [start(race, path, me, 60) for me in ("a", "b", "c")]
    for child in children:
        assert child.pipe.recv() == "ready"
    for child in children:
        child.pipe.send("go")
    got = [child.pipe.recv() for child in children]
    for child in children:
        child.process.join()
        assert child.process.exitcode == 0
        child.end()
    assert sorted(number for numbers in got for number in numbers) == list(range(60))
    async with TinyDBRegistry(path) as registry:
        assert len(registry.view) == 60
    # All have closed it: then anybody can read it with TinyDB alone.
    with tinydb.TinyDB(path) as db:
        assert len(db.table("nodes")) == 60


async def test_a_node_lock_dies_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "store.json"
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
        child = start(hold, path, "id-web1")
        assert child.pipe.recv() == "held"
        holder = await registry.holder("id-web1")
        assert holder is not None
        assert holder.process == child.process.pid
        with pytest.raises(Busy, match=rf"web1 is being worked on by process {holder.process}\b"):
            async with registry.lock("id-web1"):
                pass
        child.end()
        assert await registry.holder("id-web1") is None
        async with registry.lock("id-web1"):
            pass


@pytest.mark.timeout(0 if KILLS > 40 else 60)
async def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    """Four writers at a time, each killed at some moment of appending, folding or opening.

    All want the same key as well: whoever has it goes on having it, alone.
    """
    path = tmp_path / "store.json"
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    numbers = dict.fromkeys(WRITERS, 0)
    for kill in range(0, KILLS, len(WRITERS)):
        children = {name: start(keep_writing, path, name) for name in numbers}
        for name in chance.sample(sorted(children), len(children)):
            children[name].process.join(chance.uniform(0.0, 0.12))
            children[name].process.kill()
        for name, child in children.items():
            child.process.join()
            assert child.process.exitcode == -9
            numbers[name] = max(numbers[name], acknowledged(child))
            child.end()
        async with TinyDBRegistry(path) as registry:
            for name, number in numbers.items():
                left = registry.view.get(f"{name}-left")
                right = registry.view.get(f"{name}-right")
                found = (
                    left.metadata["number"] if left else 0,
                    right.metadata["number"] if right else 0,
                )
                assert found in {(number, number), (number + 1, number + 1)}, (kill, seed)
                # One more may be whole and not reported: killed between the two.
                numbers[name] = found[0]
            keys = [key for record in registry.view for key in record.keys]
            assert len(keys) == len({*keys}), (kill, seed)
    assert min(numbers.values()) > 0
    async with TinyDBRegistry(path) as registry:
        seen: dict[str, list[int]] = {name: [] for name in WRITERS}
        async for commit in registry.history():
            record = commit.changes[0].record
            assert len(commit.changes) == 2
            seen[record.name[0]].append(record.metadata["number"])
        for name, number in numbers.items():
            assert seen[name] == list(range(number, 0, -1))
        # A survivor writes on, and leaves a file that is whole.
        await put(registry, node("after"))
    with tinydb.TinyDB(path) as db:
        assert len(db.table("nodes").search(tinydb.where("name") == "after")) == 1
        [left] = db.table("nodes").search(tinydb.where("name") == "a-left")
        assert left["metadata"]["number"] == numbers["a"]
