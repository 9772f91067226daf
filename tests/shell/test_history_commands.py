"""history, list --at, history diff and undo, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vagoth
from tests.shell.conftest import Program, Say
from vagoth.errors import Conflict, InvalidInput, NodeNotFound
from vagoth.history import written
from vagoth.render import as_data
from vagoth.shell.commands import history as module
from vagoth.shell.context import Result, Surroundings
from vagoth.shell.line import split
from vagoth.shell.parser import parse
from vagoth.shell.runner import run


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.table is not None
    keys = [column.key for column in result.table.columns]
    return [dict(zip(keys, row, strict=True)) for row in result.table.rows]


def told(result: Result) -> list[tuple[str, str]]:
    """Each row's name and what is said of it."""
    return [(row["name"], row["change"]) for row in rows(result)]


async def last(say: Say) -> str:
    """The id of the last transaction."""
    txid = rows(await say("history --limit 1"))[0]["transaction"]
    assert isinstance(txid, str)
    return txid


async def furnish(say: Say) -> None:
    await say("new web1 memory=512MiB --tag env=prod --key asset:1 --tenant acme")
    await say("new db1 memory=1GiB")
    await say("start web1 --on hv1")


# --- history ------------------------------------------------------------------------------


async def test_each_change_is_a_line_that_says_what_was_and_what_is(
    say: Say, cluster: vagoth.Cluster
) -> None:
    await furnish(say)
    await cluster["web1"].set(metadata={"note": "long " * 20})
    await say("set web1 memory=1GiB --tag env=test --tag new --key asset:2 --no-key asset:1")
    await say("new shop --type service --link members=web1 --link members=db1")
    await say("set shop --link members=hv1 --state up --tenant acme")
    await say("rename db1 db2")
    await say("delete db2")
    found = told(await say("history"))
    assert found[:4] == [
        ("db2", "deleted"),
        ("db2", "name: db1 → db2"),
        ("shop", "state: new → up, tenant: nothing → acme, links.members: +hv1 -web1 -db2"),
        ("shop", "new service"),
    ]
    about_web = [what for name, what in found if name == "web1"]
    assert about_web[0] == (
        'keys: +asset:2 -asset:1, tags.env: prod → test, tags.new: nothing → "",'
        " definition.memory: 512MiB → 1GiB"
    )
    assert about_web[1].startswith("metadata.note: nothing → long long")
    assert len(about_web[1]) < 80
    assert about_web[1].endswith("…")
    assert "state: starting → running" in about_web
    assert any("parent: nothing → hv1" in what for what in about_web)
    assert about_web[-1] == "new vm"


async def test_who_why_and_when_stand_beside_it(say: Say) -> None:
    await furnish(say)
    found = await say("history db1")
    [row] = rows(found)
    assert "new db1 memory=1GiB" in row["by"]
    [commit] = as_data(found.table)
    assert row["time"] == commit["time"]
    assert row["at"] == written(commit["time"])
    assert row["transaction"] == commit["transaction"]
    assert commit["changes"][0]["fields"]["definition"] == {
        "before": None,
        "after": {"memory": "1GiB"},
    }


async def test_the_history_of_one_node_is_its_own_alone(say: Say) -> None:
    await furnish(say)
    await say("new shop --type service --link members=db1")
    await say("delete db1")
    found = await say("history db1")
    assert told(found) == [("db1", "deleted"), ("db1", "new vm")]
    assert [len(commit["changes"]) for commit in as_data(found.table)] == [1, 1]
    with pytest.raises(NodeNotFound):
        await say("history db9")


async def test_history_is_narrowed_by_transaction_time_and_number(say: Say) -> None:
    await furnish(say)
    txid = await last(say)
    started = rows(await say(f"history --tx {txid}"))
    assert {row["transaction"] for row in started} == {txid}
    assert ("web1", "state: starting → running") in told(await say(f"history web1 --tx {txid}"))
    assert len(as_data((await say("history --limit 2")).table)) == 2
    assert rows(await say("history --since 1h")) == rows(await say("history"))
    assert rows(await say("history --since 0s")) == []


async def test_of_a_long_history_the_newest_are_shown_and_a_note_says_so(
    say: Say, cluster: vagoth.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHOWN", 3)
    await furnish(say)
    for line, is_cut in (
        ("history", True),
        ("history web1", False),
        ("history --limit 5", False),
        ("history --since 1h", False),
    ):
        found = await say(line)
        assert found.table is not None
        assert bool(found.table.notes) is is_cut, line
        assert (len(as_data(found.table)) == 3) is (is_cut or line == "history web1"), line
    everything = await run(parse(split("history --json")), cluster, Surroundings())
    assert everything.table is not None
    assert len(as_data(everything.table)) > 5


# --- as it was ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "list",
        "list web*",
        "list web1",
        "list asset:1",
        "list --type vm",
        "list --state running",
        "list --tenant acme",
        "list --tag env=prod",
        "list --parent hv1",
        "list --key asset:1",
        "list --type hv --state up",
    ],
)
async def test_list_at_gives_what_list_gave_then(say: Say, line: str) -> None:
    await furnish(say)
    then = await say(line)
    txid = await last(say)
    await say("stop web1")
    await say("set web1 --tag env=test --no-key asset:1 --name www1 --tenant other")
    await say("rename hv1 old1")
    await say("delete db1")
    past = await say(f"{line} --at {txid}")
    assert past.table is not None
    assert txid in past.table.title
    assert as_data(past.table) == as_data(then.table)
    assert as_data(past.table) != as_data((await say("list")).table)


async def test_list_at_takes_a_time_ago_and_an_iso_time(say: Say) -> None:
    await furnish(say)
    now = rows(await say("list --at 0s"))
    assert [row["name"] for row in now] == ["db1", "hv1", "hv2", "hv3", "web1"]
    at = rows(await say("history --limit 1"))[0]["at"]
    assert rows(await say(f"list --at {at}"))
    with pytest.raises(InvalidInput, match="history is kept since"):
        await say("list --at 1w")
    with pytest.raises(NodeNotFound):
        await say("list web9 --at 0s")


async def test_diff_says_what_differs_between_two_moments(say: Say) -> None:
    await furnish(say)
    first = await last(say)
    await say("set web1 memory=1GiB")
    await say("new web2 memory=1GiB")
    second = await last(say)
    await say("delete db1")
    await say("delete web2")
    changed = ("web1", "definition.memory: 512MiB → 1GiB")
    assert told(await say(f"history diff {first} {second}")) == [changed, ("web2", "new vm")]
    assert told(await say(f"history diff {second} {first}")) == [
        ("web1", "definition.memory: 1GiB → 512MiB"),
        ("web2", "deleted"),
    ]
    since = await say(f"history diff {first}")
    assert told(since) == [("db1", "deleted"), changed]
    assert [change["change"] for change in as_data(since.table)] == ["deleted", "set"]
    assert told(await say(f"history diff {first} {first}")) == []
    assert told(await say("history diff 0s")) == []


async def test_a_node_may_be_called_diff(say: Say) -> None:
    await say("new diff --type service")
    assert told(await say("history diff")) == [("diff", "new service")]
    assert told(await say("history diff 0s")) == []


@pytest.mark.parametrize(
    "line",
    [
        "history diff",
        "history diff soon",
        "history diff 0s 0s 0s",
        "history diff 0s --limit 3",
        "history web1 0s",
        "history --limit 0",
        "history --limit -1",
        "history --limit many",
        "history --since soon",
        "history --since 2999-01-01",
        "history --tx nonesuch22",
        "list --at soon",
        "list --at ''",
        "list --at 2999-01-01",
        "undo nonesuch22",
        "undo ''",
        "undo",
        "undo a b",
    ],
)
async def test_bad_input_is_refused_and_changes_nothing(
    say: Say, cluster: vagoth.Cluster, line: str
) -> None:
    position = cluster.registry.position
    with pytest.raises(InvalidInput):
        await say(line)
    assert cluster.registry.position == position


# --- undo -----------------------------------------------------------------------------------


async def test_undo_shows_first_does_then_and_can_be_undone(
    say: Say, cluster: vagoth.Cluster
) -> None:
    await furnish(say)
    await say("set web1 memory=1GiB --tag env=test")
    txid = await last(say)
    shown = await say(f"undo {txid} --dry-run")
    text = [row["text"] for row in rows(shown)]
    assert text == [
        "put back tags, definition",
        "tags.env: test → prod",
        "definition.memory: 1GiB → 512MiB",
    ]
    assert cluster["web1"].tags == {"env": "test"}
    done = await say(f"undo {txid}")
    assert told(done) == [("web1", "tags.env: test → prod, definition.memory: 1GiB → 512MiB")]
    data = as_data(done.table)
    assert data["undone"] == txid
    assert data["transaction"] == await last(say)
    assert cluster["web1"].tags == {"env": "prod"}
    assert rows(await say("history --limit 1"))[0]["by"].endswith(f"undo {txid}")
    await say(f"undo {data['transaction']}")
    assert cluster["web1"].tags == {"env": "test"}


async def test_what_is_taken_back_already_is_said_to_be(say: Say) -> None:
    await say("new web1 memory=512MiB")
    txid = await last(say)
    await say(f"undo {txid}")
    for line in (f"undo {txid}", f"undo {txid} --dry-run"):
        again = await say(line)
        assert rows(again) == []
        assert again.table is not None
        assert "nothing to take back" in again.table.notes[0]


async def test_an_undo_that_is_refused_names_all_that_stands_in_the_way(say: Say) -> None:
    await furnish(say)
    await say("set db1 --tag a=1")
    await say("start db1 --on hv2")
    with pytest.raises(Conflict, match="use: stop db1, then undefine db1"):
        await say(f"undo {await last(say)} --dry-run")


def test_exit_codes_tell_the_cases_apart_and_nothing_refused_changes_a_byte(
    program: Program, store: Path
) -> None:
    assert program("new", "web1", "memory=512MiB").returncode == 0
    made = json.loads(program("history", "web1", "--json").stdout)[0]["transaction"]
    program("set", "web1", "--tag", "a=1")
    files = [store, store.with_name(store.name + ".journal")]
    before = [path.read_bytes() for path in files]
    for code, *arguments in (
        (4, "undo", made),
        (4, "undo", made, "--dry-run"),
        (2, "undo", "nonesuch22"),
        (2, "list", "--at", "1w"),
        (3, "history", "web9"),
        (0, "list", "--at", "0s", "--json"),
    ):
        done = program(*arguments)
        assert done.returncode == code, arguments
        assert bool(done.stderr) is (code != 0)
        assert done.stderr.count("\n") == bool(code)
    assert [path.read_bytes() for path in files] == before
