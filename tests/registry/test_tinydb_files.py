"""The files of a TinyDB registry: who may read and write them, and what becomes of damage."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import tinydb
from tinydb import where

from tests.registry.conformance import NEVER_S, following, names, node, put, revisions, until
from vagoth.actions.base import commit_seen
from vagoth.errors import Busy, InvalidInput, OutcomeUnknown, RegistryError, StaleRevision, WatchGap
from vagoth.model import Commit, Delete, Put, Record
from vagoth.registry import folder, head, rules
from vagoth.registry.lines import Line, LineChange, Mark, seal
from vagoth.registry.store import Store
from vagoth.registry.storefile import StoreFile
from vagoth.registry.tinydb import TinyDBRegistry


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cluster" / "store.json"


def journal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.journal")


def snapshot(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file below, with its content, mode and time of change."""
    return {
        str(file.relative_to(directory)): (
            file.read_bytes() if file.is_file() else b"",
            file.stat().st_mode,
            file.stat().st_mtime_ns,
        )
        for file in sorted(directory.rglob("*"))
    }


async def unfolded(path: Path, tmp_path: Path, count: int = 5) -> Path:
    """A store as a power cut leaves it: its commits in the journal only."""
    crashed = tmp_path / "crashed"
    async with TinyDBRegistry(path) as registry:
        for number in range(count):
            await put(registry, node(f"n{number}", metadata={"filler": "x" * 50}))
        shutil.copytree(path.parent, crashed)
    return crashed / path.name


async def names_in(path: Path) -> list[str]:
    async with TinyDBRegistry(path) as registry:
        return sorted(registry.view.names())


# --- who may read it, and when --------------------------------------------------------


async def test_opening_what_is_not_there_makes_nothing(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        watch = registry.watch(since=registry.position)
        await registry.refresh()
        assert [commit async for commit in registry.history()] == []
        assert await registry.holder("a") is None
        watch.close()
    assert not path.parent.exists()


async def test_reading_changes_no_byte(path: Path, tmp_path: Path) -> None:
    for store in (path, await unfolded(path, tmp_path)):
        before = snapshot(store.parent)
        async with TinyDBRegistry(store) as registry:
            assert len(registry.view) == 5
            assert len([commit async for commit in registry.history()]) == 5
            assert await registry.holder("id-n1") is None
            with pytest.raises(WatchGap):
                await following(registry.watch(since="x:1:2"), 1)
            await registry.refresh()
            await asyncio.sleep(head.FOLLOW_S * 3)
        assert snapshot(store.parent) == before


async def test_plain_tinydb_reads_it(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("hv1", type="hv"), node("web1", state="running", tags={"a": "b"}))
        await put(registry, node("web2", state="stopped", definition={"memory": "1GiB"}))

        def in_the_file() -> list[str]:
            with tinydb.TinyDB(path, access_mode="r") as db:
                return [document["name"] for document in db.table("nodes").all()]

        # Shortly after the last commit, while it is still open.
        await until(lambda: "web2" in in_the_file())
        await put(registry, node("web3"))
        expected = {record.id: msgspec.to_builtins(record) for record in registry.view}
    with tinydb.TinyDB(path, access_mode="r") as db:
        nodes = db.table("nodes")
        assert [found["id"] for found in nodes.search(where("state") == "running")] == ["id-web1"]
        assert {found["id"]: dict(found) for found in nodes.all()} == json.loads(
            json.dumps(expected)
        )


def test_tinydb_can_write_through_the_same_storage(path: Path) -> None:
    """The file goes through TinyDB's own contract for storages."""
    path.parent.mkdir()
    with tinydb.TinyDB(path, storage=StoreFile) as db:
        db.insert({"a": 1})
        db.update({"a": 2})
    with tinydb.TinyDB(path) as db:
        assert db.all() == [{"a": 2}]
    assert os.listdir(path.parent) == [path.name]


async def test_only_the_owner_can_read_it(path: Path) -> None:
    old = os.umask(0)
    try:
        async with TinyDBRegistry(path) as registry:
            await put(registry, node("web1"))
            async with registry.lock("id-web1"):
                for file in path.parent.rglob("*"):
                    wanted = 0o700 if file.is_dir() else 0o600
                    assert file.stat().st_mode & 0o777 == wanted, file
    finally:
        os.umask(old)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_link_to_a_store_stays_a_link(path: Path, tmp_path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
    link = tmp_path / "link.json"
    link.symlink_to(path)
    async with TinyDBRegistry(link) as registry:
        await put(registry, node("web2"))
    assert link.is_symlink()
    assert await names_in(path) == ["web1", "web2"]


async def test_the_loop_never_waits_for_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_loop: set[str] = set()
    elsewhere: set[str] = set()
    for name in ("fsync", "pwrite", "pread"):
        real = getattr(os, name)

        def recorded(fd: int, *args: object, real: Callable[..., object] = real) -> object:
            is_loop = threading.current_thread() is threading.main_thread()
            (on_the_loop if is_loop else elsewhere).add(os.readlink(f"/proc/self/fd/{fd}"))
            return real(fd, *args)

        monkeypatch.setattr(os, name, recorded)
    async with TinyDBRegistry(path) as registry, TinyDBRegistry(path) as other:
        for number in range(5):
            await put(registry, node(f"n{number}"))
            await put(other, node(f"m{number}"))
        assert len([commit async for commit in other.history()]) == 10
        async with registry.lock("id-n1"):
            pass
    assert {str(journal_of(path)), f"{path}.new", str(path.parent)} <= elsewhere
    # A node's lock file is a line long and never synced.
    assert on_the_loop == {str(path.with_name("store.json.locks") / "id-n1.lock")}


# --- torn and damaged -----------------------------------------------------------------


async def test_a_torn_tail_is_cut_off_by_the_next_writer(path: Path, tmp_path: Path) -> None:
    store = await unfolded(path, tmp_path)
    whole = journal_of(store).read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    tails = [whole[last : last + size] for size in (1, 17, 18, 200, len(whole) - last - 1)]
    tails += [
        b"\0" * 4096,
        b"\n",
        b"\n\n",
        b"garbage\n",
        whole[last:-1].replace(b"x", b"y") + b"\n",
    ]
    for number, tail in enumerate(tails):
        journal_of(store).write_bytes(whole[:last] + tail)
        async with TinyDBRegistry(store) as reader:
            assert sorted(reader.view.names()) == ["n0", "n1", "n2", "n3"]
            assert journal_of(store).read_bytes() == whole[:last] + tail
            async with TinyDBRegistry(store) as writer:
                watch = reader.watch()
                await put(writer, node("after", metadata={"filler": "z" * number}))
                assert names(await following(watch, 1)) == ["after"]
        assert await names_in(store) == ["after", "n0", "n1", "n2", "n3"]
        assert await names_in(store) == ["after", "n0", "n1", "n2", "n3"]
        shutil.rmtree(store.parent)
        shutil.copytree(path.parent, store.parent)
        # As it was before it was folded.
        store.unlink()


async def test_a_torn_write_of_several_commits_is_cut_off_whole(path: Path, tmp_path: Path) -> None:
    """A disk may write the second page of an append and lose the first in a power cut."""
    store = await unfolded(path, tmp_path)
    journal = journal_of(store)
    before = journal.read_bytes()
    lines = [
        seal(Line(seq, 5, "tx", 1.0, "me", "", (LineChange(after=node(f"late{seq}")),)))
        for seq in (6, 7)
    ]
    journal.write_bytes(before + b"\0" * len(lines[0]) + lines[1])
    assert await names_in(store) == [f"n{number}" for number in range(5)]
    async with TinyDBRegistry(store) as registry:
        await put(registry, node("after"))
    assert await names_in(store) == ["after", *(f"n{number}" for number in range(5))]


@pytest.mark.parametrize("line", range(5))
async def test_a_flipped_byte_is_an_error_that_names_file_and_place(
    path: Path, tmp_path: Path, line: int
) -> None:
    """Only in the very last line can it not be told from a write that was never finished."""
    store = await unfolded(path, tmp_path, count=6)
    journal = journal_of(store)
    data = bytearray(journal.read_bytes())
    starts = [0, *(found.end() for found in re.finditer(rb"\n", data))]
    for place in (starts[line], starts[line] + 12, starts[line] + 60, starts[line + 1] - 1):
        damaged = bytearray(data)
        damaged[place] ^= 0x04
        journal.write_bytes(damaged)
        with pytest.raises(RegistryError) as caught:
            await names_in(store)
        assert str(journal) in str(caught.value)
        assert f"byte {starts[line]}" in str(caught.value)
        assert caught.value.cure


async def test_a_missing_line_is_an_error(path: Path, tmp_path: Path) -> None:
    store = await unfolded(path, tmp_path)
    lines = journal_of(store).read_bytes().splitlines(keepends=True)
    journal_of(store).write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(RegistryError, match="where commit 2 should stand"):
        await names_in(store)


async def test_damage_in_what_is_folded_shows_when_it_is_read(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        for number in range(5):
            await put(registry, node(f"n{number}"))
    data = bytearray(journal_of(path).read_bytes())
    data[len(data) // 2] ^= 0x04
    journal_of(path).write_bytes(data)
    async with TinyDBRegistry(path) as registry:
        assert len(registry.view) == 5
        with pytest.raises(RegistryError, match="damaged at byte"):
            _ = [commit async for commit in registry.history()]


async def test_the_last_line_is_missed_once_it_is_folded(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        for number in range(3):
            await put(registry, node(f"n{number}"))
    data = journal_of(path).read_bytes()
    flipped = bytearray(data)
    flipped[-30] ^= 0x04
    for damaged in (data[:-1], data[: data.rstrip(b"\n").rfind(b"\n") + 1], bytes(flipped)):
        journal_of(path).write_bytes(damaged)
        with pytest.raises(RegistryError, match="does not hold commit 3"):
            await names_in(path)


async def test_damage_while_open_ends_watches_and_refuses_commits(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
        watch = registry.watch()
        bad = Line(7, 1, "tx", 1.0, "me", "", (LineChange(after=node("bad")),))
        with journal_of(path).open("ab") as file:
            file.write(seal(bad))
        with pytest.raises(RegistryError, match="should stand"):
            await following(watch, 1)
        with pytest.raises(RegistryError, match="should stand"):
            await put(registry, node("web2"))
        with pytest.raises(RegistryError, match="should stand"):
            await registry.refresh()
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_a_commit_that_does_not_follow_is_refused(path: Path) -> None:
    """The journal of a copy that went its own way must not be read as ours."""
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
        watch = registry.watch()
        change = LineChange(after=node("web1", revision="2"), was={"revision": "99"})
        with journal_of(path).open("ab") as file:
            file.write(seal(Line(2, 1, "tx", 1.0, "me", "", (change,))))
        with pytest.raises(RegistryError, match="does not follow"):
            await following(watch, 1)
        assert registry.view.get("id-web1") is not None


# --- what is there is not ours --------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "",
        "hello",
        "\0\0\0\0",
        '{"nodes": {',
        "[]",
        "5",
        '{"_default": {"1": {"a": 1}}}',
        '{"nodes": {}, "vagoth": {}}',
        '{"nodes": {}, "vagoth": {"1": {"format": 2, "store": 7}}}',
        '{"nodes": {}, "vagoth": {"1": {"format": "1"}}}',
        '{"nodes": {}, "vagoth": {"1": {"format": 1, "journal": 5}}}',
        '{"nodes": {}, "vagoth": {"1": {"format": 1}}, "mine": {"1": {}}}',
        '{"nodes": {"1": {"name": "web1"}}, "vagoth": {"1": {"format": 1}}}',
        '{"nodes": {"1": {"id": "a", "name": 5}}, "vagoth": {"1": {"format": 1}}}',
        '{"nodes": [], "vagoth": {"1": {"format": 1}}}',
    ],
)
async def test_what_is_not_ours_is_refused_and_left_alone(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    before = snapshot(path.parent)
    with pytest.raises(InvalidInput) as caught:
        await TinyDBRegistry(path).open()
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    assert snapshot(path.parent) == before


async def test_what_plain_tinydb_wrote_in_our_shape_opens(path: Path) -> None:
    path.parent.mkdir()
    with tinydb.TinyDB(path) as db:
        db.table("vagoth").insert({"format": 1})
        db.table("nodes").insert({"id": "a", "name": "web1", "state": "running"})
        db.table("nodes").insert({"id": "b", "name": "web2", "parent": "a", "keys": ["ip:1"]})
    async with TinyDBRegistry(path) as registry, TinyDBRegistry(path) as other:
        assert [record.name for record in registry.view.select()] == ["web1", "web2"]
        await registry.commit([Put(Record(id="a", name="www1"))], expect=revisions(registry, "a"))
        await until(lambda: other.view.by_name("www1"))
        await put(other, node("db1"))
    assert await names_in(path) == ["db1", "web2", "www1"]


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ({"id": "a", "name": "x"}, {"id": "a", "name": "y"}, "'a'"),
        ({"id": "a", "name": "x"}, {"id": "b", "name": "x"}, "'x'"),
        ({"id": "a", "name": "x"}, {"id": "x", "name": "y"}, "'x'"),
        (
            {"id": "a", "name": "x", "keys": ["ip:1", "ip:2"]},
            {"id": "b", "name": "y", "keys": ["ip:2"]},
            "'ip:2'",
        ),
    ],
)
async def test_duplicates_in_an_edited_file_are_refused_by_name(
    path: Path, first: dict[str, object], second: dict[str, object], what: str
) -> None:
    path.parent.mkdir()
    with tinydb.TinyDB(path) as db:
        db.table("vagoth").insert({"format": 1})
        db.table("nodes").insert_multiple([first, second])
    with pytest.raises(InvalidInput) as caught:
        await TinyDBRegistry(path).open()
    for word in (str(first["name"]), str(second["name"]), what):
        assert word in str(caught.value)


async def test_plain_tinydb_writing_beside_the_journal_is_refused(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"), node("web2"))
    good = path.read_bytes()
    with tinydb.TinyDB(path) as db:
        db.table("nodes").update({"state": "running"}, where("name") == "web1")
    with pytest.raises(RegistryError, match="changed by another program"):
        await names_in(path)
    # The way out that the message names: the journal away, and the file is the truth.
    kept = journal_of(path).read_bytes()
    journal_of(path).unlink()
    async with TinyDBRegistry(path) as registry:
        assert [record.name for record in registry.view.select(state="running")] == ["web1"]
    # The other one: the file as it was.
    journal_of(path).write_bytes(kept)
    path.write_bytes(good)
    assert await names_in(path) == ["web1", "web2"]


async def test_plain_tinydb_writing_the_same_is_harmless(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("wéb1", metadata={"n": [1e22, 0.1, -0.0, 2**70]}), node("web2"))
    with tinydb.TinyDB(path) as db:
        db.table("nodes").update({"state": "new"})
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web3"))
    assert await names_in(path) == ["web2", "web3", "wéb1"]


async def test_plain_tinydb_writing_while_it_is_open_stops_us(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
        watch = registry.watch()
        with tinydb.TinyDB(path) as db:
            db.table("nodes").insert({"id": "z", "name": "intruder"})
        with pytest.raises(RegistryError, match="changed by another program"):
            await following(watch, 1)
        with pytest.raises(RegistryError, match="changed by another program"):
            await put(registry, node("web2"))
        after = path.read_bytes()
    assert path.read_bytes() == after


# --- files that do not belong together, or go away ------------------------------------


async def test_an_older_store_file_is_brought_up_to_date_by_its_journal(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
    older = path.read_bytes()
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web2"))
        await registry.commit([Delete("id-web1")], expect=revisions(registry, "id-web1"))
    path.write_bytes(older)
    assert await names_in(path) == ["web2"]


async def test_a_lost_store_file_is_made_again_from_the_journal(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
        await put(registry, node("web1", tenant="a"), node("web2"))
        before = {record.id: record for record in registry.view}
    path.unlink()
    async with TinyDBRegistry(path) as registry:
        assert {record.id: record for record in registry.view} == before
        await put(registry, node("web3"))
    assert path.exists()
    assert await names_in(path) == ["web1", "web2", "web3"]


async def test_an_older_journal_is_refused(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
    older = journal_of(path).read_bytes()
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web2"))
    journal_of(path).write_bytes(older)
    with pytest.raises(RegistryError, match="does not hold commit 2"):
        await names_in(path)


async def test_another_stores_journal_is_refused(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    for store in (path, other):
        async with TinyDBRegistry(store) as registry:
            await put(registry, node("web1"))
    shutil.copy(journal_of(other), journal_of(path))
    with pytest.raises(RegistryError, match="belongs to another store"):
        await names_in(path)


async def test_the_store_file_alone_is_a_whole_copy(path: Path, tmp_path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        first = await put(registry, node("web1"))
        await put(registry, node("web2"))
    copy = tmp_path / "copy.json"
    shutil.copy(path, copy)
    async with TinyDBRegistry(copy) as registry, TinyDBRegistry(copy) as other:
        assert [commit async for commit in registry.history()] == []
        with pytest.raises(WatchGap):
            await following(registry.watch(since=first.position), 1)
        start = registry.position
        await put(registry, node("web3"))
        assert names(await following(registry.watch(since=start), 1)) == ["web3"]
        await until(lambda: other.view.by_name("web3"))
    async with TinyDBRegistry(copy) as registry:
        assert sorted(registry.view.names()) == ["web1", "web2", "web3"]
        assert names([commit async for commit in registry.history()]) == ["web3"]
        with pytest.raises(WatchGap):
            await following(registry.watch(since=first.position), 1)
    copy.unlink()
    with pytest.raises(RegistryError, match="missing"):
        await names_in(copy)


async def test_a_vanished_directory_stops_us_with_a_clear_error(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
        watch = registry.watch()
        path.parent.rename(tmp_path / "elsewhere")
        with pytest.raises(RegistryError, match="no longer there"):
            await following(watch, 1)
        with pytest.raises(RegistryError, match="no longer there"):
            await put(registry, node("web2"))
        assert registry.view.by_name("web1") is not None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert not path.parent.exists()
    assert await names_in(tmp_path / "elsewhere" / "store.json") == ["web1"]


@pytest.mark.parametrize("files", [["", ".journal"], [""], [".journal"]])
async def test_another_store_in_our_place_is_never_mixed_with_ours(
    path: Path, tmp_path: Path, files: list[str]
) -> None:
    other = tmp_path / "other.json"
    async with TinyDBRegistry(other) as registry:
        await put(registry, node("stranger"))
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
        for suffix in files:
            os.rename(f"{other}{suffix}", f"{path}{suffix}")
        with pytest.raises(RegistryError, match="replaced"):
            await put(registry, node("web2"))
        assert sorted(registry.view.names()) == ["web1"]


async def test_a_store_that_appears_is_followed_from_its_first_commit(path: Path) -> None:
    async with TinyDBRegistry(path) as reader:
        watch, since = reader.watch(), reader.watch(since=reader.position)
        async with TinyDBRegistry(path) as writer:
            commits = [await put(writer, node(f"n{number}")) for number in range(3)]
            assert await following(watch, 3) == commits
            since.close()
            assert len(reader.view) == 3


async def test_a_whole_store_that_appears_is_a_gap(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    async with TinyDBRegistry(other) as registry:
        await put(registry, node("web1"))
    async with TinyDBRegistry(path) as registry:
        watch = registry.watch()
        path.parent.mkdir()
        shutil.copy(other, path)
        with pytest.raises(WatchGap):
            await following(watch, 1)
        assert sorted(registry.view.names()) == ["web1"]
        await put(registry, node("web2"))
    assert await names_in(path) == ["web1", "web2"]


# --- what cannot be written -----------------------------------------------------------


async def refuses_and_recovers(
    registry: TinyDBRegistry, obstacle: AbstractContextManager[None], say: str
) -> None:
    """While there is an obstacle nothing is committed; when it is gone everything goes on."""
    before = {record.id: record for record in registry.view}
    size = journal_of(registry.path).stat().st_size
    watch = registry.watch()
    large = node("large", metadata={"x": "x" * 60_000})
    with obstacle:
        for _ in range(2):
            with pytest.raises(RegistryError, match=say) as caught:
                await put(registry, large)
            assert caught.value.cure
            assert str(registry.path.parent) in str(caught.value)
            assert {record.id: record for record in registry.view} == before
            assert journal_of(registry.path).stat().st_size == size
    await put(registry, large)
    assert names(await following(watch, 1)) == ["large"]


async def test_a_file_that_may_not_grow_is_left_as_it_was(path: Path) -> None:
    @contextmanager
    def obstacle() -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        limit = journal_of(path).stat().st_size + 4000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
        await refuses_and_recovers(registry, obstacle(), "may not grow")
    assert await names_in(path) == ["large", "web1"]


async def test_a_full_disk_refuses_commits_and_the_store_stays_good(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    with mounted(mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs"):
        path = mount / "store.json"

        @contextmanager
        def obstacle() -> Iterator[None]:
            filler = os.open(mount / "filler", os.O_WRONLY | os.O_CREAT)
            try:
                with suppress(OSError):
                    while True:
                        os.write(filler, b"x" * 4096)
                yield
                os.ftruncate(filler, 0)
            finally:
                os.close(filler)

        async with TinyDBRegistry(path) as registry:
            await put(registry, node("web1"))
            await refuses_and_recovers(registry, obstacle(), "disk is full")
        assert await names_in(path) == ["large", "web1"]


async def test_a_full_disk_is_found_before_the_first_commit(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    with mounted(mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs"):
        (mount / "filler").write_bytes(b"x" * 65536)
        async with TinyDBRegistry(mount / "store.json") as registry:
            for _ in range(2):
                with pytest.raises(RegistryError, match="disk is full"):
                    await put(registry, node("web1"))
            (mount / "filler").unlink()
            await put(registry, node("web1"))
        assert await names_in(mount / "store.json") == ["web1"]


async def test_a_file_system_that_is_read_only_can_be_read(path: Path, tmp_path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
    mount = tmp_path / "view"
    mount.mkdir()
    with mounted(mount, "--bind", str(path.parent)):
        assert does("mount", "-o", "remount,ro,bind", str(mount))
        async with TinyDBRegistry(mount / path.name) as registry, TinyDBRegistry(path) as writer:
            await put(writer, node("web2"))
            await until(lambda: registry.view.by_name("web2"))
            with pytest.raises(RegistryError, match="read-only"):
                await put(registry, node("web3"))
            with pytest.raises(RegistryError, match="read-only"):
                async with registry.lock("id-web1"):
                    pass
            assert await registry.holder("id-web1") is None


async def test_a_journal_that_may_not_be_changed_refuses_commits(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
    journal = str(journal_of(path))
    if not does("chattr", "+i", journal):
        pytest.skip("needs chattr, root, and a file system that knows immutable files")
    try:
        async with TinyDBRegistry(path) as registry:
            with pytest.raises(RegistryError, match="not permitted"):
                await put(registry, node("web2"))
            assert sorted(registry.view.names()) == ["web1"]
            assert does("chattr", "-i", journal)
            await put(registry, node("web2"))
    finally:
        does("chattr", "-i", journal)
    assert await names_in(path) == ["web1", "web2"]


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    async with TinyDBRegistry(tmp_path / "file" / "below" / "store.json") as registry:
        with pytest.raises(RegistryError, match="not a directory"):
            await put(registry, node("web1"))
    with pytest.raises(RegistryError, match="it is a directory"):
        await TinyDBRegistry(tmp_path).open()


async def test_a_failed_sync_takes_the_commit_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
        real = os.fsync
        calls: list[int] = []

        def failing(fd: int) -> None:
            calls.append(fd)
            if len(calls) == 1:
                raise OSError(errno.EIO, "Input/output error")
            real(fd)

        monkeypatch.setattr(os, "fsync", failing)
        with pytest.raises(RegistryError, match="disk reports an error"):
            await put(registry, node("web2"))
        assert sorted(registry.view.names()) == ["web1"]
        await put(registry, node("web3"))
    assert await names_in(path) == ["web1", "web3"]


async def test_a_commit_that_cannot_be_taken_back_is_in_doubt(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))

        def failing(fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            with pytest.raises(OutcomeUnknown):
                await put(registry, node("web2"))
        await put(registry, node("web3"))
        found = sorted(registry.view.names())
    assert await names_in(path) == found


async def test_commits_outlive_a_store_file_that_cannot_be_folded(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
        path.with_name("store.json.new").mkdir()
        await put(registry, node("web2"))
    assert "not folded" in caplog.text
    assert await names_in(path) == ["web1", "web2"]
    path.with_name("store.json.new").rmdir()
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web3"))
    with tinydb.TinyDB(path) as db:
        assert len(db.table("nodes")) == 3


# --- several writers, clocks ----------------------------------------------------------


async def test_what_a_writer_may_yet_take_back_is_not_shown(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        first = await put(registry, node("web1"))
        watch = registry.watch()
        with path.with_name("store.json.lock").open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            line = Line(2, 1, "tx", 1.0, "me", "", (LineChange(after=node("web2")),))
            with journal_of(path).open("ab") as file:
                file.write(seal(line))
            await asyncio.sleep(head.FOLLOW_S * 4)
            await registry.refresh()
            assert registry.position == first.position
            # Who opens it now sees what was acknowledged, and no more.
            assert await names_in(path) == ["web1"]
        assert names(await following(watch, 1)) == ["web2"]


async def test_a_hung_writer_is_named_and_reading_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "LOCK_WAIT_S", 0.2)
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
        with path.with_name("store.json.lock").open("rb+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(RegistryError, match=rf"held by process {os.getpid()}\b"):
                await put(registry, node("web2"))
            task = asyncio.ensure_future(put(registry, node("web3")))
            await asyncio.sleep(0.05)
            await registry.refresh()
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await names_in(path) == ["web1"]
        await put(registry, node("web4"))
        assert sorted(registry.view.names()) == ["web1", "web4"]


async def test_a_removed_lock_file_does_not_let_two_write(path: Path) -> None:
    async with TinyDBRegistry(path) as registry, TinyDBRegistry(path) as other:
        await put(registry, node("web0"))
        for number in range(1, 6):
            path.with_name("store.json.lock").unlink()
            await asyncio.gather(put(registry, node(f"a{number}")), put(other, node(f"b{number}")))
    async with TinyDBRegistry(path) as registry:
        assert len(registry.view) == 11


async def test_a_clock_that_goes_backwards_is_harmless(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.time()
    monkeypatch.setattr(time, "time", lambda: clock)
    async with TinyDBRegistry(path) as registry, TinyDBRegistry(path) as other:
        watch = other.watch()
        for number in range(4):
            clock -= 3600
            await put(registry, node("web1", metadata={"n": number}))
        seen = [commit.changes[0].record.metadata["n"] for commit in await following(watch, 4)]
        assert seen == [0, 1, 2, 3]
        history = [commit async for commit in other.history()]
        assert [commit.changes[0].record.metadata["n"] for commit in history] == [3, 2, 1, 0]
        assert len([commit async for commit in other.history(since=clock + 1800)]) == 3
        async with registry.lock("id-web1"):
            clock -= 3600
            holder = await other.holder("id-web1")
            assert holder is not None
    async with TinyDBRegistry(path) as registry:
        record = registry.view.by_name("web1")
        assert record is not None
        assert record.metadata == {"n": 3}


async def test_history_reads_a_long_journal_in_pieces(path: Path) -> None:
    sizes = [10, 300_000, 5, 1_000_000, *[70_000] * 20, 3]
    async with TinyDBRegistry(path) as registry:
        start = registry.position
        for number, size in enumerate(sizes):
            await put(registry, node(f"n{number}", metadata={"x": "x" * size}))
        commits = [commit async for commit in registry.history()]
        assert names(commits) == [f"n{number}" for number in reversed(range(len(sizes)))]
        again = await following(registry.watch(since=start), len(sizes))
        assert [*reversed(again)] == commits


async def test_closing_waits_for_commits_that_were_begun(path: Path) -> None:
    registry = TinyDBRegistry(path)
    await registry.open()
    tasks = [asyncio.ensure_future(put(registry, node(f"n{number}"))) for number in range(20)]
    await asyncio.sleep(0)
    await registry.close()
    assert all([isinstance(await task, Commit) for task in tasks])
    assert len(await names_in(path)) == 20


def test_a_loop_that_ends_leaves_commits_settled(path: Path) -> None:
    """As after Ctrl-C: every task is cancelled, the writer's too."""

    async def run() -> None:
        registry = TinyDBRegistry(path)
        await registry.open()
        await put(registry, node("first"))
        background.extend(
            asyncio.ensure_future(put(registry, node(f"n{number}"))) for number in range(50)
        )
        await asyncio.sleep(0.001)

    background: list[asyncio.Future[Commit]] = []
    asyncio.run(run())
    found = asyncio.run(names_in(path))
    assert "first" in found
    for number, task in enumerate(background):
        if not task.cancelled():
            assert f"n{number}" in found
    asyncio.run(once(path))


async def once(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("after"))


async def test_thousands_of_changes_that_a_poll_found_are_one_commit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided_by = []
    real = rules.decide

    def decide(*args: object, **settings: object) -> object:
        decided_by.append(threading.current_thread())
        return real(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(rules, "decide", decide)
    nodes = [node(f"n{number}", keys=(f"ip:{number}",)) for number in range(5000)]
    async with TinyDBRegistry(path) as registry:
        await registry.commit([Put(each) for each in nodes], expect={n.id: None for n in nodes})

        def found() -> list[Record]:
            seen = [msgspec.structs.replace(each, state="running") for each in registry.view]
            return [each for each in seen if each != registry.view.get(each.id)]

        assert await commit_seen(registry, found) == 5000
        assert await commit_seen(registry, found) == 0
        assert len(registry.view.select(state="running")) == 5000
        assert len([commit async for commit in registry.history()]) == 2
    assert threading.main_thread() not in decided_by


async def test_a_crowd_of_updates_in_two_clients_folds_in_between(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "FOLD_AFTER_S", 0.0)
    async with TinyDBRegistry(path) as registry, TinyDBRegistry(path) as other:
        await put(registry, node("web1", metadata={"n": 0}))
        await other.refresh()

        async def work(client: TinyDBRegistry) -> None:
            for _ in range(40):
                await client.update(
                    "id-web1",
                    lambda record: msgspec.structs.replace(
                        record, metadata={"n": record.metadata["n"] + 1}
                    ),
                )
                await asyncio.sleep(0.001)

        async with asyncio.timeout(NEVER_S):
            await asyncio.gather(work(registry), work(other))
    with tinydb.TinyDB(path) as db:
        assert [found["metadata"] for found in db.table("nodes").all()] == [{"n": 80}]
    assert not path.with_name("store.json.new").exists()


async def test_expecting_what_another_process_has_changed_is_stale(path: Path) -> None:
    async with TinyDBRegistry(path) as registry, TinyDBRegistry(path) as other:
        await put(registry, node("web1"))
        await other.refresh()
        expect = revisions(other, "id-web1")
        await put(registry, node("web1", tenant="a"))
        with pytest.raises(StaleRevision):
            await other.commit([Put(node("web1", tenant="b"))], expect=expect)


async def test_a_lock_on_a_file_that_was_removed_is_no_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening a lock's file and locking it, its holder may go and another may come."""
    file = path.with_name("store.json.locks") / "a.lock"
    file.parent.mkdir(parents=True)
    first = file.open("wb")
    fcntl.flock(first, fcntl.LOCK_EX)
    real = fcntl.flock
    holders = [first]

    def flock(fd: int, operation: int) -> None:
        if holders == [first]:
            file.unlink()
            first.close()
            holders.append(file.open("wb"))
            real(holders[-1], fcntl.LOCK_EX)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    async with TinyDBRegistry(path) as registry:
        with pytest.raises(Busy):
            async with registry.lock("a"):
                pass
        holders[-1].close()
        async with registry.lock("a"):
            pass


async def test_an_older_fold_never_replaces_a_newer_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow process has begun to fold when a quick one commits, folds and is gone."""
    begun, go_on = threading.Event(), threading.Event()
    slow = TinyDBRegistry(path)
    await slow.open()
    await put(slow, node("web1"))
    real = Store.stage

    def stage(store: Store, records: Iterable[Record], mark: Mark) -> bool:
        if not begun.is_set():
            begun.set()
            go_on.wait(NEVER_S)
        return real(store, records, mark)

    monkeypatch.setattr(Store, "stage", stage)
    closing = asyncio.ensure_future(slow.close())
    await until(begun.is_set)
    async with TinyDBRegistry(path) as quick:
        await put(quick, node("web2"))
    go_on.set()
    await closing
    with tinydb.TinyDB(path, access_mode="r") as db:
        assert len(db.table("nodes")) == 2


async def test_what_is_on_disk_is_published_even_if_the_loop_is_ending(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("web1"))
        syncing, go_on = threading.Event(), threading.Event()
        real = os.fsync

        def fsync(fd: int) -> None:
            syncing.set()
            go_on.wait(NEVER_S)
            real(fd)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            task = asyncio.ensure_future(put(registry, node("web2")))
            await until(syncing.is_set)
            for each in asyncio.all_tasks():
                if each.get_name() == "vagoth-registry-write":
                    each.cancel()
            await asyncio.sleep(0.01)
            assert registry.view.by_name("web2") is None
            go_on.set()
            assert isinstance(await task, Commit)
        assert registry.view.by_name("web2") is not None


# --- the order of syncs ---------------------------------------------------------------

_TRACED = """
import asyncio, os, sys
from pathlib import Path
from vagoth.model import Put, Record
from vagoth.registry.tinydb import TinyDBRegistry

async def run(path):
    async with TinyDBRegistry(path) as registry:
        for name in ("a", "b"):
            await registry.commit([Put(Record(id=name, name=name))], expect={name: None})
            os.write(1, b"acknowledged")

asyncio.run(run(Path(sys.argv[1])))
"""


def test_nothing_is_acknowledged_before_it_is_synced(path: Path, tmp_path: Path) -> None:
    """As the kernel sees it: append, sync, acknowledge; and beside, sync, rename, sync."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    trace = tmp_path / "trace"
    calls = "trace=pwrite64,write,fsync,fdatasync,rename,mkdir"
    strace = ["strace", "-f", "-y", "-s", "64", "-e", calls, "-o", str(trace)]
    program = [sys.executable, "-c", _TRACED, str(path)]
    done = subprocess.run([*strace, *program], capture_output=True, text=True)
    if "ptrace" in done.stderr.lower() and done.returncode:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    seen = []
    for line in trace.read_text().splitlines():
        call = re.match(r"\d+ +(\w+)\((.*)\) += (\d+)", line)
        if call is None:
            continue
        name, arguments = call[1], call[2]
        if name == "write" and "acknowledged" in arguments:
            seen.append("acknowledged")
        elif str(tmp_path) in arguments and ".lock" not in arguments:
            [where, *_] = re.findall(rf"{re.escape(str(tmp_path))}[^>\"]*", arguments)
            seen.append(f"{name} {Path(where).relative_to(tmp_path)}")
    append = ["pwrite64 cluster/store.json.journal", "fsync cluster/store.json.journal"]
    beside = ["pwrite64 cluster/store.json.new"] * 5 + [
        "fsync cluster/store.json.new",
        "rename cluster/store.json.new",
        "fsync cluster",
    ]
    assert seen == [
        "mkdir cluster",
        "fsync .",
        *beside,
        *append,
        "fsync cluster",
        *append,
        "acknowledged",
        *append,
        "acknowledged",
        "fsync cluster/store.json.journal",
        *beside,
    ]


def does(*command: str) -> bool:
    """Run a program; whether there is one, and it did what it was asked."""
    return shutil.which(command[0]) is not None and subprocess.run(command).returncode == 0


@contextmanager
def mounted(mount: Path, *arguments: str) -> Iterator[None]:
    """Something mounted for the time of a test; without the right to, the test is skipped."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a file system")
    done = subprocess.run(["mount", *arguments, str(mount)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
async def test_root_does_not_lock_the_owner_out(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        await registry.commit([Put(Record(id="a", name="a"))], expect={"a": None})
    beside = [path, path.with_name(f"{path.name}.journal"), path.with_name(f"{path.name}.lock")]
    for file in beside:
        os.chown(file, 65534, 65534)
    async with TinyDBRegistry(path) as registry:
        await registry.commit([Put(Record(id="b", name="b"))], expect={"b": None})
    assert {file.stat().st_uid for file in beside} == {65534}


async def test_a_pipe_is_no_store_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(InvalidInput, match="a pipe or a device"):
        await TinyDBRegistry(tmp_path / "pipe.json").open()
    with pytest.raises(InvalidInput, match="a pipe or a device"):
        await TinyDBRegistry(Path("/dev/zero")).open()
