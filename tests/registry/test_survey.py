"""Damage is listed with its place, and all that is whole is saved from it; nothing is deleted."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import tinydb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tinydb import where

from tests.registry.conformance import names, node, put, revisions
from tests.registry.test_tinydb_files import journal_of, names_in, snapshot, unfolded
from vagoth.errors import InvalidInput, RegistryError
from vagoth.model import Delete
from vagoth.registry.lines import Line, LineChange, seal
from vagoth.registry.salvage import Salvage, repair
from vagoth.registry.survey import survey
from vagoth.registry.tinydb import TinyDBRegistry


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cluster" / "store.json"


async def history(path: Path) -> Path:
    """A store with a bit of everything: changes, a deletion, parents, keys."""
    async with TinyDBRegistry(path) as registry:
        await put(registry, node("hv1", type="hv"))
        await put(registry, node("web1", parent="id-hv1", keys=("ip:1",)))
        await put(registry, node("web2", metadata={"n": 1}), node("gone"))
        await put(registry, node("web2", metadata={"n": 2}))
        await registry.commit([Delete("id-gone")], expect=revisions(registry, "id-gone"))
        await put(registry, node("web3"))
    return path


def told(path: Path) -> list[str]:
    return [f"{finding.place}: {finding.problem}" for finding in survey(path).findings]


def saved(path: Path, target: Path) -> Salvage:
    before = snapshot(path.parent)
    done = repair(survey(path), target)
    assert snapshot(path.parent) == before
    return done


async def test_a_sound_store_is_sound_and_stays_as_it_is(path: Path, tmp_path: Path) -> None:
    for store in (await history(path), await unfolded(tmp_path / "b" / "store.json", tmp_path)):
        before = snapshot(store.parent)
        found = survey(store)
        assert found.findings == []
        assert (len(found.documents), len(found.pieces)) in {(4, 6), (5, 5)}
        assert snapshot(store.parent) == before


async def test_what_a_store_may_be_without_damage(path: Path) -> None:
    await history(path)
    whole = journal_of(path).read_bytes()
    journal_of(path).write_bytes(whole + b'{"sum":"0000')
    found = survey(path)
    assert (found.findings, found.is_torn) == ([], True)
    journal_of(path).unlink()
    assert survey(path).findings == []
    journal_of(path).write_bytes(whole)
    path.unlink()
    assert survey(path).findings == []
    journal_of(path).unlink()
    with pytest.raises(RegistryError, match="there is no store at"):
        survey(path)


async def test_a_journal_that_was_emptied_is_damage(path: Path, tmp_path: Path) -> None:
    await history(path)
    whole = journal_of(path).read_bytes()
    for size in (0, 20):
        journal_of(path).write_bytes(whole[:size])
        [problem] = told(path)
        assert "its first line is missing" in problem
        with pytest.raises(RegistryError, match="damaged at byte 0: its first line is missing"):
            await names_in(path)
        done = saved(path, tmp_path / f"saved{size}.json")
        assert (done.nodes, done.commits) == (4, 0)


async def test_a_store_in_use_is_looked_at_up_to_where_it_is_settled(path: Path) -> None:
    async with TinyDBRegistry(path) as registry:
        for number in range(20):
            await put(registry, node(f"n{number}"))
            assert told(path) == []


async def test_every_damaged_line_is_named_with_its_place(path: Path, tmp_path: Path) -> None:
    store = await unfolded(path, tmp_path, count=8)
    data = bytearray(journal_of(store).read_bytes())
    starts = [0, *(found.end() for found in re.finditer(rb"\n", data))]
    for line in (2, 4, 5):
        data[starts[line] + 60] ^= 0x04
    journal_of(store).write_bytes(data)
    assert told(store) == [
        f"byte {starts[2]}: commit 2 cannot be read",
        f"byte {starts[4]}: commits 4 to 5 cannot be read",
    ]
    target = tmp_path / "new" / "saved.json"
    done = saved(store, target)
    assert done.lost == ("commit 2", "commit 4", "commit 5")
    # Each commit made one node, so those nodes are lost; all others, and their history, are not.
    assert await names_in(target) == ["n0", "n2", "n5", "n6", "n7"]
    async with TinyDBRegistry(target) as registry:
        commits = [commit async for commit in registry.history()]
        assert [names([each]) for each in commits if each.changes] == [
            ["n7"],
            ["n6"],
            ["n5"],
            ["n2"],
            ["n0"],
        ]
        assert [each.reason for each in commits if not each.changes] == [
            f"commit {number} was damaged and could not be saved" for number in (5, 4, 2)
        ]
        await put(registry, node("after"))
    assert told(target) == []
    assert target.stat().st_mode & 0o777 == 0o600


async def test_a_damaged_journal_loses_no_record_that_was_folded(
    path: Path, tmp_path: Path
) -> None:
    await history(path)
    before = await names_in(path)
    data = bytearray(journal_of(path).read_bytes())
    for place in range(100, len(data), 150):
        data[place] ^= 0x04
    journal_of(path).write_bytes(data)
    assert told(path)
    done = saved(path, tmp_path / "saved.json")
    assert done.nodes == 4
    assert done.commits == 0
    assert await names_in(tmp_path / "saved.json") == before
    async with TinyDBRegistry(tmp_path / "saved.json") as registry:
        await put(registry, node("after"))


async def test_a_damaged_first_line_costs_nothing(path: Path, tmp_path: Path) -> None:
    await history(path)
    data = bytearray(journal_of(path).read_bytes())
    data[30] ^= 0x04
    journal_of(path).write_bytes(data)
    [problem] = told(path)
    assert problem.startswith("byte 0: its first line")
    done = saved(path, tmp_path / "saved.json")
    assert (done.nodes, done.commits, done.lost) == (4, 6, ())
    assert told(tmp_path / "saved.json") == []


async def test_a_cut_off_store_file_is_made_whole_by_its_journal(
    path: Path, tmp_path: Path
) -> None:
    await history(path)
    before = await names_in(path)
    data = path.read_bytes()
    for number, size in enumerate((0, 10, len(data) // 2, len(data) - 1)):
        path.write_bytes(data[:size])
        [problem] = told(path)
        assert "not JSON" in problem
        assert re.search(r"byte \d+", problem)
        with pytest.raises(RegistryError, match=rf"{re.escape(str(path))}.* byte \d+"):
            await names_in(path)
        done = saved(path, tmp_path / f"saved{number}.json")
        assert (done.nodes, done.lost) == (4, ())
        assert await names_in(tmp_path / f"saved{number}.json") == before


async def test_a_cut_off_store_file_alone_keeps_its_whole_nodes(path: Path, tmp_path: Path) -> None:
    await history(path)
    journal_of(path).unlink()
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"web3")] + b'"\xff{"id":')
    done = saved(path, tmp_path / "saved.json")
    assert (done.nodes, done.commits) == (3, 0)
    assert await names_in(tmp_path / "saved.json") == ["hv1", "web1", "web2"]


async def test_a_document_that_is_no_record_is_named(path: Path, tmp_path: Path) -> None:
    await history(path)
    journal_of(path).unlink()
    with tinydb.TinyDB(path) as db:
        db.table("nodes").update({"name": 5}, where("name") == "hv1")
    problems = told(path)
    assert problems[0].startswith("document 1: it is no record")
    assert (
        any("parent id-hv1 is not there" in problem for problem in problems) or problems[1:] == []
    )
    done = saved(path, tmp_path / "saved.json")
    assert done.nodes == 3
    assert done.lost == ("web1: its parent id-hv1",)


async def test_a_missing_journal_part_is_named(path: Path, tmp_path: Path) -> None:
    await history(path)
    lines = journal_of(path).read_bytes().splitlines(keepends=True)
    journal_of(path).write_bytes(b"".join(lines[:3]))
    assert told(path) == ["its end: commits 3 to 6 cannot be read, and was acknowledged"]
    done = saved(path, tmp_path / "saved.json")
    assert (done.nodes, done.commits) == (4, 2)
    assert done.lost == ("commit 3", "commit 4", "commit 5", "commit 6")
    assert told(tmp_path / "saved.json") == []


async def test_another_program_is_named_and_its_change_is_not_merged(
    path: Path, tmp_path: Path
) -> None:
    await history(path)
    with tinydb.TinyDB(path) as db:
        db.table("nodes").update({"name": "www"}, where("name") == "web1")
    assert told(path) == [
        "table nodes: it was changed by another program than Vagoth, while its journal stands"
    ]
    done = saved(path, tmp_path / "saved.json")
    assert done.nodes == 4
    assert await names_in(tmp_path / "saved.json") == ["hv1", "web1", "web2", "web3"]


async def test_files_that_do_not_belong_together_are_named(path: Path, tmp_path: Path) -> None:
    await history(path)
    other = await history(tmp_path / "other" / "store.json")
    shutil.copy(journal_of(other), journal_of(path))
    [problem] = told(path)
    assert "belongs to another store" in problem


async def test_a_node_that_is_not_as_its_history_left_it_is_named(path: Path) -> None:
    """Somebody edited the file and its digest; or a fold went wrong."""
    await history(path)
    lines = journal_of(path).read_bytes().splitlines(keepends=True)
    change = LineChange(after=node("web3", tenant="other", revision="6"))
    lines[6] = seal(Line(6, 5, "tx", 1.0, "me", "", (change,)))
    journal_of(path).write_bytes(b"".join(lines))
    assert any("web3 is not as the journal left it" in problem for problem in told(path))


async def test_duplicates_are_named_and_the_latest_keeps_what_is_its(
    path: Path, tmp_path: Path
) -> None:
    path.parent.mkdir()
    with tinydb.TinyDB(path) as db:
        db.table("vagoth").insert({"format": 1})
        for number, name in enumerate(("web1", "web1", "db1")):
            db.table("nodes").insert(
                {"id": f"i{number}", "name": name, "keys": ["ip:1"], "revision": str(number)}
            )
    assert len(told(path)) == 3
    done = saved(path, tmp_path / "saved.json")
    assert done.nodes == 3
    assert len(done.lost) == 3
    async with TinyDBRegistry(tmp_path / "saved.json") as registry:
        holder = registry.view.by_key("ip:1")
        latest = registry.view.by_name("web1")
        assert holder is not None
        assert latest is not None
        assert (holder.name, latest.id) == ("db1", "i1")
        await put(registry, node("after"))


async def test_repairing_a_store_of_which_nothing_is_whole_says_so(
    path: Path, tmp_path: Path
) -> None:
    path.parent.mkdir()
    path.write_text("hello")
    with pytest.raises(RegistryError, match="nothing in it is whole"):
        saved(path, tmp_path / "saved.json")
    assert os.listdir(tmp_path / "cluster") == [path.name]


async def test_nothing_is_ever_written_over_by_a_repair(path: Path, tmp_path: Path) -> None:
    await history(path)
    target = tmp_path / "saved.json"
    journal_of(target).write_text("something")
    for taken in (path, target):
        with pytest.raises(InvalidInput, match="does not exist yet"):
            saved(path, taken)
    journal_of(target).unlink()
    assert repair(survey(path), target, dry_run=True).nodes == 4
    assert not target.exists()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
async def test_whatever_is_damaged_is_found_and_what_is_saved_opens(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Bytes flipped, cut out or cut off anywhere in either file."""
    directory = tmp_path_factory.mktemp("damage")
    path = await history(directory / "store.json")
    before = json.loads(path.read_bytes())["nodes"].values()
    damaged = data.draw(st.sets(st.sampled_from(["store.json", "store.json.journal"]), min_size=1))
    for file in (directory / name for name in sorted(damaged)):
        content = bytearray(file.read_bytes())
        at = data.draw(st.integers(0, 1_000_000)) % (len(content) - 1)
        match data.draw(st.sampled_from(["flip", "cut out", "cut off"])):
            case "flip":
                content[at] ^= 0x04
            case "cut out":
                del content[at : at + data.draw(st.integers(1, 400))]
            case "cut off":
                del content[at:]
        file.write_bytes(content)
    found = survey(path)
    assert found.findings
    if not found.documents and not found.pieces:
        with pytest.raises(RegistryError, match="nothing in it is whole"):
            repair(found, directory / "saved.json")
        return
    done = repair(found, directory / "saved.json")
    async with TinyDBRegistry(directory / "saved.json") as registry:
        assert len(registry.view) == done.nodes
        if len(damaged) == 1:
            assert sorted(registry.view.names()) == sorted(found["name"] for found in before)
        await put(registry, node("after"))
    assert [
        problem for problem in told(directory / "saved.json") if "is not there" not in problem
    ] == []
