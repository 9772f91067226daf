"""``vagoth store``: what it finds, does and refuses; also on stores that do not open."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tinydb
from tinydb import where

import vagoth
from tests.registry.test_tinydb_files import journal_of, snapshot
from tests.shell.conftest import Say, command
from vagoth.errors import InvalidInput, RegistryError
from vagoth.registry import exchange
from vagoth.shell.context import Result

Vagoth = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def vg(store: Path) -> Vagoth:
    """Run ``vagoth --store`` of the test, without simulated hosts."""

    def run(*arguments: str, at: Path = store, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command("--store", str(at), *arguments),
            text=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=20,
        )
        assert done.returncode == code, done
        return done

    return run


async def fill(store: Path, *names: str) -> None:
    async with vagoth.connect(store=store) as cluster:
        hv = await cluster.new("hv1", type="hv", definition={"driver": "sim"})
        for name in names:
            await cluster.new(
                name, definition={"memory": 512}, links={"near": [hv]}, keys=[f"asset:{name}"]
            )


def records(result: Result) -> Any:
    assert result.table is not None
    return result.table.records


def spoil(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x04
    path.write_bytes(data)


async def test_a_sound_store_is_told_in_one_line(store: Path, vg: Vagoth) -> None:
    await fill(store, "web1")
    before = snapshot(store.parent)
    assert vg("store", "check").stdout == f"{store} is sound: 2 nodes, 2 commits\n"
    found = json.loads(vg("store", "check", "--json").stdout)
    assert (found["sound"], found["nodes"], found["findings"]) == (True, 2, [])
    assert snapshot(store.parent) == before


async def test_a_damaged_store_is_checked_and_repaired(store: Path, vg: Vagoth) -> None:
    await fill(store, "web1", "web2")
    journal = journal_of(store)
    start = journal.read_bytes().index(b"\n") + 1
    spoil(journal, start + 50)
    store.write_bytes(store.read_bytes()[:-100])
    before = {file.name: file.read_bytes() for file in (store, journal)}
    assert str(store) in vg("list", code=1).stderr
    shown = vg("store", "check", code=1)
    assert str(journal) in shown.stdout
    assert f"byte {start}" in shown.stdout
    found = json.loads(vg("store", "check", "--json", code=1).stdout)
    assert [finding["file"] for finding in found["findings"]] == [str(store), str(journal)]
    new = store.with_name("new.json")
    vg("store", "repair", str(new), "--dry-run")
    assert not new.exists()
    told = vg("store", "repair", str(new)).stdout
    assert f"saved to {new}" in told
    assert "not saved: commit 1" in told
    assert {file.name: file.read_bytes() for file in (store, journal)} == before
    assert [each["name"] for each in json.loads(vg("list", "--json", at=new).stdout)] == [
        "hv1",
        "web1",
        "web2",
    ]
    assert "does not exist yet" in vg("store", "repair", "--output", str(new), code=2).stderr


async def test_after_compact_plain_tinydb_reads_all(store: Path, vg: Vagoth) -> None:
    await fill(store, "web1")
    store.unlink()
    vg("store", "compact", "--dry-run")
    assert not store.exists()
    assert "holds all 2 nodes" in vg("store", "compact").stdout
    with tinydb.TinyDB(store) as db:
        assert len(db.table("nodes").search(where("name") == "web1")) == 1
        db.table("nodes").update({"name": "www"}, where("name") == "web1")
    assert "changed by another program" in vg("list", code=1).stderr
    assert "changed by another program" in vg("store", "check", code=1).stdout


async def test_prune_forgets_history_of_that_age_alone(store: Path, vg: Vagoth) -> None:
    await fill(store, "web1")
    assert vg("store", "prune", "--older-than", "30d").stdout.startswith("0 commits")
    assert "2 commits" in vg("store", "prune", "--older-than", "0s", "--dry-run").stdout
    assert json.loads(vg("store", "prune", "--older-than", "0s", "--json").stdout)["commits"] == 2
    info = json.loads(vg("store", "info", "--json").stdout)
    assert (info["nodes"], info["commits"], info["oldest"]) == (2, 0, None)
    for age in ("30", "month", "-1d", ""):
        vg("store", "prune", f"--older-than={age}", code=2)


def exported(vg: Vagoth, at: Path) -> str:
    vg("store", "export", str(at.with_name("export.json")), at=at)
    return at.with_name("export.json").read_text()


async def test_an_export_comes_back_as_it_was(store: Path, vg: Vagoth, tmp_path: Path) -> None:
    await fill(store, "web1", "web2")
    out = tmp_path / "out.json"
    assert "3 nodes would be written" in vg("store", "export", str(out), "--dry-run").stdout
    assert not out.exists()
    vg("store", "export", str(out))
    assert out.stat().st_mode & 0o777 == 0o600
    text = out.read_text()
    vg("store", "export", str(out))
    assert out.read_text() == text
    other = tmp_path / "other.json"
    assert "3 nodes would be added" in vg("store", "import", str(out), "--dry-run", at=other).stdout
    assert not other.exists()
    vg("store", "import", str(out), at=other)
    assert vg("store", "import", str(out), at=other).stdout == (
        "0 nodes were added; 3 are there already\n"
    )
    times = {"created", "updated", "state_since"}
    before, after = (
        [
            {field: value for field, value in node.items() if field not in times}
            for node in json.loads(exported(vg, at))["nodes"]
        ]
        for at in (store, other)
    )
    assert before == after
    reason = json.loads(journal_of(other).read_text().splitlines()[1])["reason"]
    assert reason.startswith("store import")


async def test_one_change_is_one_line_of_an_export(store: Path, vg: Vagoth) -> None:
    await fill(store, "web1", "web2")
    before = exported(vg, store).splitlines()
    vg("rename", "web1", "www1")
    after = exported(vg, store).splitlines()
    changed = [line for line in after if line not in before]
    assert len(changed) == 2
    assert changed[0].strip() == '"name": "www1",'
    assert '"updated"' in changed[1]


async def test_an_import_is_refused_whole(store: Path, vg: Vagoth, tmp_path: Path) -> None:
    await fill(store, "web1", "web2")
    out = tmp_path / "out.json"
    vg("store", "export", str(out))
    data = json.loads(out.read_text())
    by_name = {node["name"]: node for node in data["nodes"]}
    target = tmp_path / "target.json"
    await fill(target, "web1")
    hv1 = vg("info", "hv1", "--json", at=target)
    by_name["hv1"]["id"] = json.loads(hv1.stdout)["id"]
    by_name["web2"]["definition"]["memory"] = "lots"
    out.write_text(json.dumps(data))
    refused = vg("store", "import", str(out), at=target, code=2).stderr
    for part in ("nothing was imported", "web2: ", "web1: ", "taken by web1", "links.near"):
        assert part in refused
    assert len(json.loads(vg("list", "--json", at=target).stdout)) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("hello", "no export"),
        ("{}", "no export"),
        ('{"format": 2, "nodes": []}', "knows format 1"),
        ('{"format": 1, "nodes": [], "more": 1}', "no export"),
        ('{"format": 1, "nodes": [{"id": "a"}]}', r"nodes\[0\]"),
        ('{"format": 1, "nodes": [{"id": "a", "name": 5}]}', r"nodes\[0\]"),
        ('{"format": 1, "nodes": [{"id": "a", "name": "x y", "type": "service"}]}', "x y"),
        ('{"format": 1, "nodes": [{"id": "a", "name": "x", "type": "odd"}]}', "odd"),
        (
            '{"format": 1, "nodes": [{"id": "a", "name": "x", "type": "service"},'
            ' {"id": "a", "name": "y", "type": "service"}]}',
            "taken by x",
        ),
        (
            '{"format": 1, "nodes": [{"id": "a", "name": "x", "type": "service", "parent": "b"},'
            ' {"id": "b", "name": "y", "type": "service", "parent": "a"}]}',
            "parent",
        ),
    ],
)
async def test_what_cannot_be_imported_is_named(
    say: Say, cluster: vagoth.Cluster, tmp_path: Path, content: str, problem: str
) -> None:
    file = tmp_path / "in.json"
    file.write_text(content)
    with pytest.raises(InvalidInput, match=problem):
        await say(f"store import {file}")
    assert len(cluster) == 3


async def test_a_large_import_takes_as_many_commits_as_it_needs(
    say: Say, cluster: vagoth.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        {
            "id": f"i{number}",
            "name": f"n{number}",
            "type": "service",
            "parent": f"i{number + 1}" if number < 9 else None,
            "links": {"other": [f"i{9 - number}"]},
        }
        for number in range(10)
    ]
    file = tmp_path / "in.json"
    file.write_text(json.dumps({"format": 1, "nodes": nodes}))
    monkeypatch.setattr(cluster.registry, "max_changes", 3)
    assert len(records(await say(f"store import {file} --json"))["added"]) == 10
    for node in nodes:
        record = cluster.view.get(str(node["id"]))
        assert record is not None
        assert record.parent == node["parent"]
        assert [*record.links["other"]] == node["links"]["other"]  # type: ignore[index]


async def test_an_export_is_never_written_over_something_else(say: Say, tmp_path: Path) -> None:
    file = tmp_path / "precious.txt"
    file.write_text("precious")
    with pytest.raises(InvalidInput, match="an export to write anew"):
        await say(f"store export {file}")
    assert file.read_text() == "precious"
    with pytest.raises(RegistryError, match="not there"):
        await say(f"store export {tmp_path / 'no' / 'where.json'}")
    assert exchange.is_export(b'{"format": 9, "nodes": []}')


async def test_the_shell_looks_after_the_store_that_it_has_open(
    say: Say, cluster: vagoth.Cluster, tmp_path: Path
) -> None:
    assert "is sound: 3 nodes" in (await say("store check")).text
    assert "holds all 3 nodes" in (await say("store compact")).text
    assert "3 commits" in (await say("store prune --older-than 0s")).text
    async with cluster.registry.lock(cluster["hv1"].id):
        info = records(await say("store info"))
    assert info["nodes"] == 3
    assert [each["node"] for each in info["locked"]] == ["hv1"]
    out = tmp_path / "out.json"
    await say(f"store export {out}")
    await cluster.delete("hv2")
    await say(f"store import {out}")
    assert "hv2" in cluster
    assert (await say(f"store repair {tmp_path / 'new.json'}")).text.startswith("3 nodes")


@pytest.mark.parametrize(
    "line",
    [
        "store",
        "store chek",
        "store check file",
        "store repair",
        "store repair a --output b",
        "store prune",
        "store prune file",
        "store info --output b",
        "store import",
        "store import /does/not/exist",
    ],
)
async def test_what_makes_no_sense_is_refused(say: Say, line: str) -> None:
    with pytest.raises(InvalidInput):
        await say(line)


def test_a_store_that_is_not_there_is_not_sound(vg: Vagoth, store: Path) -> None:
    for line in (
        ["check"],
        ["info"],
        ["compact"],
        ["export", "x.json"],
        ["prune", "--older-than", "1d"],
    ):
        assert "there is no store at" in vg("store", *line, code=1).stderr
    assert not store.exists()
