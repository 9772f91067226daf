"""Looking after a store: folding and pruning on request, while others use it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import tinydb
from tinydb import where

from tests.registry.conformance import following, names, node, put, until
from tests.registry.processes import start
from tests.registry.test_tinydb_files import journal_of, names_in, snapshot, unfolded
from vagoth.errors import RegistryError, WatchGap
from vagoth.model import Commit, Delete, Holder
from vagoth.registry import journal
from vagoth.registry.survey import survey
from vagoth.registry.tinydb import TinyDBRegistry

NOW = float("inf")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cluster" / "store.json"


async def filled(path: Path, count: int = 5) -> list[Commit]:
    async with TinyDBRegistry(path) as registry:
        return [await put(registry, node(f"n{number}")) for number in range(count)]


async def test_after_compacting_the_file_alone_holds_all(path: Path, tmp_path: Path) -> None:
    crashed = await unfolded(path, tmp_path)
    async with TinyDBRegistry(crashed) as registry, TinyDBRegistry(crashed) as other:
        await put(other, node("other"))
        await registry.compact()
        with tinydb.TinyDB(crashed, access_mode="r") as db:
            assert db.table("nodes").search(where("name") == "other")
            assert len(db.table("nodes")) == 6
        await registry.compact()
        await put(other, node("after"))
    alone = tmp_path / "alone.json"
    shutil.copy(crashed, alone)
    assert len(await names_in(alone)) == 7


async def test_compacting_what_is_not_there_makes_nothing(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await registry.compact()
        assert (await registry.prune(NOW)).commits == 0
        assert (await registry.info()).nodes == 0
    assert not path.parent.exists()


async def test_pruning_forgets_the_oldest_history_and_no_record(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr("time.time", lambda: clock)
    async with TinyDBRegistry(path) as registry:
        for number in range(6):
            clock += 100
            await put(registry, node(f"n{number}"))
        before = snapshot(path.parent)
        assert (await registry.prune(1350.0, dry_run=True)).commits == 3
        assert (await registry.prune(1000.0)).commits == 0
        await registry.compact()
        size = journal_of(path).stat().st_size
        done = await registry.prune(1350.0)
        assert done.commits == 3
        assert size - journal_of(path).stat().st_size >= done.size_bytes - 20 > 0
        assert len(before) <= len(snapshot(path.parent))
        history = [commit async for commit in registry.history()]
        assert names(history) == ["n5", "n4", "n3"]
        await put(registry, node("n6"))
        assert (await registry.prune(NOW)).commits == 4
        await put(registry, node("n7"))
    assert survey(path).findings == []
    assert await names_in(path) == [f"n{number}" for number in range(8)]
    async with TinyDBRegistry(path) as registry:
        assert names([commit async for commit in registry.history()]) == ["n7"]
        info = await registry.info()
        assert (info.nodes, info.commits, info.oldest) == (8, 1, clock)
    assert journal_of(path).stat().st_mode & 0o777 == 0o600


async def test_a_clock_that_went_backwards_makes_pruning_keep_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([100.0, 200.0, 900.0, 300.0, 950.0])
    async with TinyDBRegistry(path) as registry:
        for number in range(5):
            clock = next(times)
            monkeypatch.setattr("time.time", lambda clock=clock: clock)
            await put(registry, node(f"n{number}"))
        assert (await registry.prune(500.0)).commits == 2


async def test_others_go_on_while_history_is_pruned(path: Path) -> None:
    commits = await filled(path)
    async with TinyDBRegistry(path) as registry, TinyDBRegistry(path) as other:
        watch = other.watch()
        late = other.watch(since=commits[-1].position)
        early = other.watch(since=commits[0].position)
        await registry.prune(NOW)
        after = await put(registry, node("after"))
        assert await following(watch, 1) == [after]
        assert await following(late, 1) == [after]
        with pytest.raises(WatchGap, match="does not keep what followed"):
            await following(early, 1)
        mine = await put(other, node("mine"))
        assert await following(registry.watch(since=after.position), 1) == [mine]
        assert names([commit async for commit in other.history()]) == ["mine", "after"]
    assert len(await names_in(path)) == 7


async def test_who_had_not_read_what_was_pruned_is_told_of_the_gap(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await filled(path)
    async with TinyDBRegistry(path) as registry, TinyDBRegistry(path) as sleeper:
        watch = sleeper.watch()
        # It does not get to look while the other one commits, deletes, folds and prunes.
        monkeypatch.setattr(sleeper._store, "has_news", lambda _mark: False)
        await put(registry, node("late"))
        record = registry.view.get("id-n0")
        assert record is not None
        await registry.commit([Delete("id-n0")], expect={"id-n0": record.revision})
        await registry.prune(NOW)
        monkeypatch.undo()
        with pytest.raises(WatchGap, match="no longer holds what followed commit 5"):
            await following(watch, 1)
        assert sorted(sleeper.view.names()) == ["late", "n1", "n2", "n3", "n4"]
        watch = sleeper.watch()
        await put(registry, node("more"))
        assert names(await following(watch, 1)) == ["more"]
        await put(sleeper, node("mine"))


async def test_a_history_that_is_being_read_is_not_torn_by_pruning(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        for number in range(6):
            await put(registry, node(f"n{number}", metadata={"x": "x" * 100_000}))
        history = registry.history()
        assert names([await anext(history)]) == ["n5"]
        await registry.prune(NOW)
        assert {name async for commit in history for name in names([commit])} <= {"n4", "n3"}


async def test_damage_is_not_pruned_away(path: Path) -> None:
    await filled(path)
    data = bytearray(journal_of(path).read_bytes())
    data[len(data) // 2] ^= 0x04
    journal_of(path).write_bytes(data)
    async with TinyDBRegistry(path) as registry:
        with pytest.raises(RegistryError, match="damaged at byte"):
            await registry.prune(NOW)
    assert journal_of(path).read_bytes() == bytes(data)


@pytest.mark.parametrize("call", ["open", "pwrite", "fsync", "rename"])
async def test_pruning_that_fails_forgets_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    await filled(path)
    async with TinyDBRegistry(path) as registry:
        await registry.compact()
        real: Callable[..., object] = getattr(os, call)

        def failing(target: object, *args: object, **settings: object) -> object:
            name = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else target
            if str(name).endswith("journal.new"):
                raise OSError(28, "No space left on device")
            return real(target, *args, **settings)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing)
            with pytest.raises(RegistryError, match="disk is full"):
                await registry.prune(NOW)
        assert len([commit async for commit in registry.history()]) == 5
        await put(registry, node("after"))
        assert (await registry.prune(NOW)).commits == 6
    assert survey(path).findings == []


def prune_and_die(path: Path, _pipe: Connection, call: str, is_after: bool) -> None:
    """Prune everything, and be killed before or after that call of the system's."""
    real: Callable[..., object] = getattr(os, call)

    def deadly(*args: object) -> None:
        if is_after:
            real(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    store = TinyDBRegistry(path)._store
    _, mark = store.load()
    assert store.lock.try_exclusive()
    cut = store.older(NOW, mark)
    assert cut is not None
    setattr(os, call, deadly)
    store.prune(cut, mark)


@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize("is_after", [False, True])
async def test_a_kill_while_pruning_leaves_a_whole_store(
    path: Path, call: str, is_after: bool
) -> None:
    await filled(path)
    child = start(prune_and_die, path, call, is_after)
    child.process.join()
    assert child.process.exitcode == -signal.SIGKILL
    child.end()
    assert survey(path).findings == []
    async with TinyDBRegistry(path) as registry:
        history = [commit async for commit in registry.history()]
        assert len(history) == (0 if (call, is_after) == ("rename", True) else 5)
        await put(registry, node("after"))
    assert len(await names_in(path)) == 6


async def test_info_tells_how_the_store_is(path: Path) -> None:
    commits = await filled(path)
    async with TinyDBRegistry(path) as registry, TinyDBRegistry(path) as other:
        odd = "x" * 300
        async with other.lock("id-n1"), other.lock(odd):
            info = await registry.info()
        assert info.path == str(path)
        assert (info.nodes, info.commits) == (5, 5)
        assert info.position == registry.position
        assert info.size_bytes == path.stat().st_size
        assert info.journal_bytes == journal_of(path).stat().st_size
        assert info.oldest == commits[0].time
        assert len(info.locked) == 2
        assert isinstance(info.locked["id-n1"], Holder)
        assert info.locked["id-n1"].process == os.getpid()
        assert (await registry.info()).locked == {}


async def test_opening_meets_a_store_that_is_pruned_at_that_moment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading the JSON file and opening the journal, both become others."""
    await filled(path)
    older = path.read_bytes()
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("late"))
        await registry.compact()
        newer = path.read_bytes()
        await registry.prune(NOW)
    real = journal.Journal.open
    path.write_bytes(older)

    def opened(where: Path) -> journal.Journal | None:
        path.write_bytes(newer)
        return real(where)

    monkeypatch.setattr(journal.Journal, "open", staticmethod(opened))
    assert "late" in await names_in(path)
    assert json.loads(path.read_bytes())


async def test_waiting_for_news_never_ends_on_a_pruned_store(path: Path) -> None:
    await filled(path)
    async with TinyDBRegistry(path) as registry, TinyDBRegistry(path) as other:
        await registry.prune(NOW)
        await until(lambda: not other._store.has_news(other._head.mark))
        assert other.position == registry.position
