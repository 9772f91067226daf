"""What was: history, the cluster at a past moment, and transactions taken back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from tinydb import where

import vagoth
from vagoth import Cluster, Commit, Conflict, InvalidInput, NodeNotFound, Record, RecordChange
from vagoth.actions.base import this_process
from vagoth.history import Moment, rewound, time_of, written
from vagoth.model import Intent, Put
from vagoth.registry import writer

BOOKKEEPING = ("revision", "updated", "created", "state_since", "claimed_at", "former")
LINUX = {"memory": "256MiB"}


def plain(record: Record) -> Record:
    """The record without bookkeeping."""
    return replace(
        record, **{name: getattr(Record(id="x", name="x"), name) for name in BOOKKEEPING}
    )


def copy(cluster: Cluster) -> dict[str, Record]:
    """All records, by id."""
    return {record.id: record for record in cluster.view}


def without_bookkeeping(records: dict[str, Record]) -> dict[str, Record]:
    return {node_id: plain(record) for node_id, record in records.items()}


async def commits(found: AsyncIterator[Commit]) -> list[Commit]:
    return [commit async for commit in found]


async def newest(cluster: Cluster) -> str:
    """The id of the last transaction."""
    [commit] = await commits(cluster.history(limit=1))
    return commit.txid


async def refused(cluster: Cluster, txid: str) -> str:
    """Why a transaction is not taken back, by plan and in earnest, and that nothing changed."""
    before, position = copy(cluster), cluster.registry.position
    with pytest.raises(Conflict) as planned:
        await cluster.plan_undo(txid)
    with pytest.raises(Conflict) as caught:
        await cluster.undo(txid)
    assert str(planned.value) == str(caught.value)
    assert caught.value.exit_code == 4
    assert (copy(cluster), cluster.registry.position) == (before, position)
    return str(caught.value)


# --- whatever was changed, in whatever order ---------------------------------------------------

Change = Callable[[Cluster], Any]
NAMES = ("a", "b", "c", "d")
names = st.sampled_from(NAMES)
words = st.sampled_from(["x", "y", "z"])


def new(name: str, other: str, word: str) -> Change:
    return lambda cluster: cluster.new(
        name,
        type="service",
        tags={"t": word},
        keys=[f"key:{word}"],
        definition={"n": {"m": word}},
        links={"members": [other]} if other in cluster else None,
    )


def changing(field: str) -> Callable[[str, str, str], Change]:
    def change(name: str, other: str, word: str) -> Change:
        values: dict[str, Any] = {
            "name": other,
            "tenant": word,
            "tags": {word: other, "t": None},
            "metadata": {"m": {word: other}},
            "definition": {"n": {"m": word, other: [word]}},
            "state": word,
            "add_keys": [f"key:{word}"],
            "links": {word: [other], "members": None},
            "parent": other,
        }
        return lambda cluster: cluster[name].set(**{field: values[field]})

    return change


def deleting(name: str, _other: str, _word: str) -> Change:
    return lambda cluster: cluster.delete(name)


FIELDS = ["name", "tags", "metadata", "definition", "state", "add_keys", "links", "parent"]
changes = st.one_of(
    *(st.builds(make, names, names, words) for make in (new, new, deleting, *map(changing, FIELDS)))
)
transactions = st.lists(st.lists(changes, min_size=1, max_size=4), min_size=1, max_size=12)


class Clock:
    """Ever other times, in whatever order."""

    def __init__(self, offsets: list[int]) -> None:
        self.start = time.time() - 100_000
        self._offsets = offsets
        self._asked = 0

    def time(self) -> float:
        self._asked += 1
        return self.start + self._offsets[self._asked % len(self._offsets)]


@settings(max_examples=50, deadline=None)
@given(transactions, st.lists(st.integers(0, 20), min_size=1, max_size=20))
def test_any_moment_is_as_it_was_and_the_last_transaction_can_be_taken_back_and_done_again(
    story: list[list[Change]], offsets: list[int]
) -> None:
    clock = Clock(offsets)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "time", SimpleNamespace(time=clock.time))
        asyncio.run(_relive(Path(folder) / "store.json", story, clock.start))


async def _relive(store: Path, story: list[list[Change]], start: float) -> None:
    async with vagoth.connect(store=store) as cluster:
        moments: list[tuple[Commit, dict[str, Record]]] = []
        cluster.registry.listen(lambda commit: moments.append((commit, copy(cluster))))
        for name in NAMES[:3]:
            before = copy(cluster)
            await cluster.new(name, type="service", tags={"t": name}, keys=[f"name:{name}"])
        for transaction in story:
            until = copy(cluster)
            async with cluster.transaction() as tx:
                for change in transaction:
                    # A name that is taken, a node that is not there: nothing happens.
                    with suppress(vagoth.VagothError, KeyError):
                        await change(cluster)
            if moments and moments[-1][0].txid == tx.id:
                before = until
        for seconds in range(-1, 22):
            await _same_at(cluster, start + seconds, moments)
        for commit, _ in moments:
            after = [records for each, records in moments if each.txid == commit.txid]
            assert copy_of(await cluster.at(commit.txid)) == after[-1]
        await _there_and_back(cluster, before)
        for txid in {commit.txid for commit, _ in moments}:
            await _refused_or_there_and_back(cluster, txid)


async def _same_at(
    cluster: Cluster, at: float, moments: list[tuple[Commit, dict[str, Record]]]
) -> None:
    passed = [records for commit, records in moments if commit.time <= at]
    if passed:
        assert copy_of(await cluster.at(at)) == passed[-1]
    else:
        with pytest.raises(InvalidInput):
            await cluster.at(at)


async def _there_and_back(cluster: Cluster, before: dict[str, Record]) -> None:
    after = copy(cluster)
    last = await newest(cluster)
    undone = await cluster.undo(last)
    assert without_bookkeeping(copy(cluster)) == without_bookkeeping(before)
    if undone is None:
        assert without_bookkeeping(before) == without_bookkeeping(after)
        return
    await cluster.undo(undone.txid)
    assert without_bookkeeping(copy(cluster)) == without_bookkeeping(after)


async def _refused_or_there_and_back(cluster: Cluster, txid: str) -> None:
    before = without_bookkeeping(copy(cluster))
    try:
        undone = await cluster.undo(txid)
    except Conflict:
        undone = None
    if undone is not None:
        assert without_bookkeeping(copy(cluster)) != before
        await cluster.undo(undone.txid)
    assert without_bookkeeping(copy(cluster)) == before


def copy_of(snapshot: vagoth.View) -> dict[str, Record]:
    return {record.id: record for record in snapshot}


# --- the cluster as it was -----------------------------------------------------------------------


async def test_a_moment_is_selected_from_like_what_is(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX, tags={"env": "prod"}, keys=["asset:1"])
    await web.start(on="hv2")
    then = await newest(cluster)
    await web.migrate("hv1")
    await web.set(name="www1", tags={"env": "test"}, remove_keys=["asset:1"])
    await cluster["hv2"].set(name="old")
    past = await cluster.at(then)
    assert past.txid == then
    for found in (
        past.nodes("web*"),
        past.nodes(type="vm", state="running"),
        past.nodes(tags={"env": "prod"}),
        past.nodes(key="asset:1"),
        past.nodes(parent="hv2"),
        past.nodes(parent=cluster["old"]),
        past.nodes(where("tags").env == "prod", where("name") == "web1"),
        past.select("web1"),
        [past.find("asset:1")],
    ):
        assert [record.name for record in found] == ["web1"]
    assert past.nodes(parent="hv1") == []
    with pytest.raises(NodeNotFound):
        past.find("www1")
    with pytest.raises(InvalidInput):
        past.nodes("a*", "b*")


async def test_a_time_may_be_a_number_a_datetime_or_text(cluster: Cluster) -> None:
    await cluster.new("web1", definition=LINUX)
    now = time.time()
    for when in (
        now,
        datetime.now(),
        datetime.now(UTC),
        "0s",
        datetime.now(UTC).isoformat(),
        datetime.now().isoformat(" "),
    ):
        assert "web1" in (await cluster.at(when)).names()


async def test_the_time_shown_for_a_commit_is_one_at_which_it_was_made(cluster: Cluster) -> None:
    await cluster.new("web1", definition=LINUX)
    [commit] = await commits(cluster.history(limit=1))
    assert "web1" in (await cluster.at(written(commit.time))).names()


@pytest.mark.parametrize(
    ("text", "ago"),
    [("90s", 90), ("15m", 900), ("1h", 3600), ("1.5h", 5400), ("2d", 172800), ("1w", 604800)],
)
def test_durations_are_before_now(text: str, ago: float) -> None:
    assert time_of(text, now=1e9) == 1e9 - ago


@pytest.mark.parametrize(
    "text",
    [
        *("", "h", "1", "1y", "-5m", "+5m", "5 m", "1h30m", "١h", "1e3s", "nan", "yesterday"),
        *(
            "2024-13-01",
            "2024-02-30T00:00",
            "24-01-01",
            "2024-01-01T25:00",
            "2024-01-01Tx",
            "12:30",
        ),
        *("0000-01-01", "2024-01-01T00:00+99:00", "2024-1-1", "2999-01-01", "1h\n"),
    ],
)
async def test_what_is_no_past_time_is_refused(text: str, cluster: Cluster) -> None:
    with pytest.raises(InvalidInput):
        time_of(text, now=time.time())
    with pytest.raises(InvalidInput):
        await cluster.at(text)
    with pytest.raises(InvalidInput):
        await commits(cluster.history(since=text))


@pytest.mark.parametrize("when", [float("nan"), float("inf"), -float("inf"), 1e300, -1e300, -1e12])
async def test_numbers_that_are_no_past_time_are_refused(when: float, cluster: Cluster) -> None:
    with pytest.raises(InvalidInput):
        await cluster.at(when)


async def test_before_history_begins_nothing_is_known_and_the_error_says_since_when(
    cluster: Cluster, store: Path
) -> None:
    oldest = (await commits(cluster.history()))[-1]
    for when in ("1w", oldest.time - 0.001, "1999-12-31"):
        with pytest.raises(InvalidInput, match=f"kept since {written(oldest.time)}"):
            await cluster.at(when)
    async with vagoth.connect(store=store.with_name("other.json")) as empty:
        with pytest.raises(InvalidInput, match="no history"):
            await empty.at("0s")
        assert await commits(empty.history()) == []


async def test_a_transaction_that_was_not_is_refused_with_the_nearest(cluster: Cluster) -> None:
    await cluster.new("web1", definition=LINUX)
    txid = await newest(cluster)
    wrong = txid[:-1] + ("2" if txid[-1] != "2" else "3")
    for asked in (
        lambda: cluster.at(wrong),
        lambda: cluster.undo(wrong),
        lambda: cluster.plan_undo(wrong),
        lambda: commits(cluster.history(txid=wrong)),
    ):
        with pytest.raises(InvalidInput, match=f"did you mean {txid}"):
            await asked()


async def test_history_is_read_only_as_far_as_needed() -> None:
    record = Record(id="a", name="a")
    made = [
        Commit(
            position=str(number),
            txid=str(number),
            time=float(number),
            source="",
            reason="",
            changes=(RecordChange(replace(record, tenant=str(number - 1)), record),),
        )
        for number in range(9)
    ]
    # Position 7: the last commit came after the records were taken, and is passed over.
    other = Record(id="b", name="b")
    made[-1] = replace(made[-1], changes=(RecordChange(other, None),))
    read: list[str] = []

    async def backwards() -> AsyncIterator[Commit]:
        for commit in reversed(made):
            read.append(commit.position)
            yield commit

    past = await rewound([record], "7", backwards(), Moment.of(5.5, now=9.0))
    assert read == ["8", "7", "6", "5"]
    assert [found.tenant for found in past] == ["5"]


async def test_order_is_that_of_the_commits_when_the_clock_goes_backwards(store: Path) -> None:
    start = time.time() - 1000
    times: Iterator[float] = iter([start + 50, start + 10, start + 20])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "time", SimpleNamespace(time=lambda: next(times)))
        async with vagoth.connect(store=store) as cluster:
            for name in ("a", "b", "c"):
                await cluster.new(name, type="service")
    async with vagoth.connect(store=store) as cluster:
        found = await commits(cluster.history())
        assert [commit.changes[0].record.name for commit in found] == ["c", "b", "a"]
        assert sorted((await cluster.at(start + 15)).names()) == ["a", "b"]
        assert sorted((await cluster.at(start + 30)).names()) == ["a", "b", "c"]
        with pytest.raises(InvalidInput):
            await cluster.at(start + 5)


# --- history -------------------------------------------------------------------------------------


async def test_history_meets_every_condition_newest_first(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX)
    async with cluster.transaction(source="deploy", reason="CHG-1") as tx:
        await web.set(tags={"a": "1"})
        await cluster.new("web2", definition=LINUX)
    await web.set(name="www1")
    everything = await commits(cluster.history())
    assert [commit.time for commit in everything] == sorted(
        (commit.time for commit in everything), reverse=True
    )
    of_web = await commits(cluster.history(node=web))
    assert len(of_web) == 3
    assert of_web == await commits(cluster.history(node="www1"))
    assert of_web[:2] == await commits(cluster.history(node=web.id, limit=2))
    deployed = await commits(cluster.history(txid=tx.id))
    assert [(commit.source, commit.reason) for commit in deployed] == [("deploy", "CHG-1")] * 2
    assert await commits(cluster.history(txid=tx.id, node=web)) == deployed[1:]
    assert await commits(cluster.history(since="1h")) == everything
    assert await commits(cluster.history(since=deployed[-1].time)) == everything[:3]
    assert await commits(cluster.history(txid=tx.id, since="0s")) == []
    with pytest.raises(InvalidInput):
        await commits(cluster.history(limit=0))


async def test_the_history_of_deleted_nodes_is_asked_for_by_last_name_id_or_key(
    cluster: Cluster,
) -> None:
    first = await cluster.new("web1", definition=LINUX, keys=["asset:1"])
    await first.set(name="www1")
    await first.delete()
    for name in ("www1", first.id, "asset:1"):
        found = await commits(cluster.history(node=name))
        assert len(found) == 3
        assert found[0].changes[0].after is None
    with pytest.raises(NodeNotFound, match="did you mean www1"):
        await commits(cluster.history(node="www11"))
    assert await commits(cluster.history(node=first)) == found


async def test_of_several_deleted_nodes_of_one_name_the_ids_are_named(cluster: Cluster) -> None:
    ids = []
    for _ in range(2):
        node = await cluster.new("web1", definition=LINUX)
        ids.append(node.id)
        await node.delete()
    with pytest.raises(InvalidInput) as caught:
        await commits(cluster.history(node="web1"))
    assert all(node_id in str(caught.value) for node_id in ids)
    assert len(await commits(cluster.history(node=ids[0]))) == 2
    await cluster.undo(await newest(cluster))
    await cluster[ids[1]].set(name="back")
    # What was brought back is no deleted node any more.
    assert len(await commits(cluster.history(node="web1"))) == 2
    living = await cluster.new("web1", definition=LINUX)
    [made] = await commits(cluster.history(node="web1"))
    assert made.changes[0].record.id == living.id


# --- undo ----------------------------------------------------------------------------------------


async def test_undo_of_a_delete_brings_the_node_back_with_all_it_had(cluster: Cluster) -> None:
    web = await cluster.new(
        "web1",
        definition={**LINUX, "nics": [{"network": "lan"}]},
        tags={"env": "prod"},
        keys=["asset:1"],
        metadata={"rack": "b4"},
        tenant="acme",
    )
    service = await cluster.new("shop", type="service", links={"members": ["web1"]})
    await web.start()
    await web.stop()
    await web.undefine()
    before = without_bookkeeping(copy(cluster))
    await web.delete()
    assert service.links == {}
    await cluster.undo(await newest(cluster))
    assert without_bookkeeping(copy(cluster)) == before
    assert (web.is_deleted, web.state, web.parent, web.id) == (False, "new", None, web.id)
    assert service.links == {"members": [web]}
    # Hosts that had it once are still asked before it is started.
    assert web.record.former
    await web.start()


async def test_alarms_of_a_deleted_node_do_not_come_back_with_it(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX)
    noted = {"duplicate_on": ["hv1"], "rack": "b4"}
    alarmed = replace(web.record, alarm="duplicate", applied="0123", metadata=noted)
    await cluster.registry.commit([Put(alarmed)], expect={web.id: web.record.revision})
    await web.delete()
    await cluster.undo(await newest(cluster))
    assert (web.alarm, web.record.applied, web.metadata) == (None, "", {"rack": "b4"})


async def test_undo_of_a_new_node_removes_it_and_redo_brings_it_back(cluster: Cluster) -> None:
    before = copy(cluster)
    web = await cluster.new("web1", definition=LINUX, keys=["asset:1"])
    after = without_bookkeeping(copy(cluster))
    for _ in range(2):
        undone = await cluster.undo(await newest(cluster))
        assert undone is not None
        assert copy(cluster) == before
        assert web.is_deleted
        await cluster.undo(undone.txid)
        assert without_bookkeeping(copy(cluster)) == after


async def test_undo_puts_fields_back_and_leaves_what_others_changed_beside_them(
    cluster: Cluster,
) -> None:
    web = await cluster.new(
        "web1", definition=LINUX, tags={"a": "1", "b": "1"}, keys=["k:1"], metadata={"m": {"x": 1}}
    )
    shop = await cluster.new("shop", type="service", links={"members": [web]})
    async with cluster.transaction() as tx:
        await web.set(name="www1", tags={"a": "2", "c": "2"}, definition={"memory": "1GiB"})
        await web.set(add_keys=["k:2"], remove_keys=["k:1"], metadata={"m": {"y": 2}})
        await shop.set(links={"members": [web, "hv1"]}, state="up")
    await web.set(tags={"b": "3"}, definition={"vcpus": 2}, add_keys=["k:3"])
    await web.set(metadata={"m": {"z": 3}}, tenant="acme")
    await shop.set(links={"members": [web, "hv1", "hv2"]})
    commit = await cluster.undo(tx.id)
    assert commit is not None
    assert len(commit.changes) == 2
    assert (web.name, web.tags, web.tenant) == ("web1", {"a": "1", "b": "3"}, "acme")
    assert web.definition == {**LINUX, "vcpus": 2}
    assert {"k:1", "k:3"} < {*web.keys}
    assert "k:2" not in web.keys
    assert web.metadata == {"m": {"x": 1, "z": 3}}
    assert shop.links == {"members": [web, cluster["hv2"]]}
    assert shop.state == "new"


async def test_what_was_changed_since_stands_in_the_way_and_is_named(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX, tags={"env": "prod"})
    made = await newest(cluster)
    await web.set(tags={"env": "test"}, definition={"memory": "1GiB"})
    first = await newest(cluster)
    async with cluster.transaction(source="zoë", reason="CHG-7") as later:
        await web.set(tags={"env": "dev"})
    told = await refused(cluster, first)
    assert "web1" in told
    assert "tags.env" in told
    assert "memory" not in told
    assert f"transaction {later.id}, zoë: CHG-7" in told
    assert later.id in await refused(cluster, made)
    await cluster.undo(later.id)
    await cluster.undo(first)
    assert web.tags == {"env": "prod"}
    await cluster.undo(made)
    assert web.is_deleted


async def test_a_node_that_was_deleted_since_stands_in_the_way(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX)
    await web.set(tags={"a": "1"})
    first = await newest(cluster)
    await web.delete()
    gone = await newest(cluster)
    told = await refused(cluster, first)
    assert "deleted since" in told
    assert gone in told


async def test_names_and_keys_that_were_taken_since_stand_in_the_way(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX, keys=["asset:1"])
    await web.set(name="www1")
    renamed = await newest(cluster)
    await cluster.new("web1", type="service")
    assert "'web1' is taken by web1" in await refused(cluster, renamed)
    await web.delete()
    deleted = await newest(cluster)
    await cluster.new("other", type="service", keys=["asset:1"])
    assert "'asset:1' is taken by other" in await refused(cluster, deleted)
    await cluster.delete("other")
    await cluster.new("thief", type="service", id=web.id)
    assert "thief is there again" in await refused(cluster, deleted)


async def test_what_was_built_on_it_since_stands_in_the_way(cluster: Cluster) -> None:
    rack = await cluster.new("rack", type="service")
    made = await newest(cluster)
    disk = await cluster.new("disk", type="volume", parent=rack)
    assert "rack carries disk" in await refused(cluster, made)
    await disk.set(parent="")
    await disk.set(links={"in": [rack]})
    assert "disk links to rack" in await refused(cluster, made)
    await disk.set(links={"in": None})
    unlinked = await newest(cluster)
    await rack.delete()
    assert "was deleted since" in await refused(cluster, unlinked)


async def test_what_hosts_would_have_to_do_is_refused_with_the_command_that_does_it(
    cluster: Cluster,
) -> None:
    async def last() -> str:
        return await newest(cluster)

    web = await cluster.new("web1", definition=LINUX)
    made = await last()
    await web.define(on="hv1")
    defined = await last()
    assert "use: undefine web1" in await refused(cluster, defined)
    assert "undefine it first" in await refused(cluster, made)
    await web.start()
    started = await last()
    assert "use: shutdown web1" in await refused(cluster, started)
    assert "use: stop web1, then undefine web1" in await refused(cluster, defined)
    await web.pause()
    assert "use: resume web1" in await refused(cluster, await last())
    await web.resume()
    assert "use: pause web1" in await refused(cluster, await last())
    await web.migrate("hv2")
    moved = await last()
    assert "use: migrate web1 hv1" in await refused(cluster, moved)
    await web.stop()
    assert "use: start web1" in await refused(cluster, await last())
    await web.undefine()
    assert "use: define web1 --on hv2" in await refused(cluster, await last())
    # Taken back by those commands, nothing of it is left to take back.
    assert await cluster.undo(defined) is None
    await cluster.undo(made)
    assert web.is_deleted


async def test_a_definition_is_put_back_also_while_the_machine_runs(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX)
    await web.start()
    await web.set(definition={"memory": "1GiB"})
    assert web.is_pending
    await cluster.undo(await newest(cluster))
    assert not web.is_pending
    assert (web.state, web.definition) == ("running", LINUX)


async def test_the_uuid_of_a_machine_stays_while_it_is_placed(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX)
    await web.set(definition={"uuid": "6c8f1f2e-3f43-4b5c-9f0a-0c3d2f1b7a11"})
    changed = await newest(cluster)
    await web.define()
    assert "undefine it first" in await refused(cluster, changed)


async def test_what_is_only_seen_on_hosts_is_neither_taken_back_nor_in_the_way(
    cluster: Cluster,
) -> None:
    host = await cluster.new("hv9", type="hv", definition={"driver": "sim"})
    made = await newest(cluster)
    await host.poll()
    seen = await newest(cluster)
    before = copy(cluster)
    assert seen != made
    assert host.facts is not None
    assert await cluster.undo(seen) is None
    assert copy(cluster) == before
    await host.set(metadata={"rack": "b4"})
    await cluster.undo(await newest(cluster))
    assert host.facts is not None
    assert "rack" not in host.metadata
    await cluster.undo(made)
    assert host.is_deleted


async def test_a_definition_that_would_not_do_is_refused(cluster: Cluster) -> None:
    host = await cluster.new("hv9", type="hv", definition={"driver": "sim"})
    await host.set(definition={"driver": "libvirt"})
    changed = await newest(cluster)
    await host.set(definition={"ssh": "root@hv9"})
    assert "hv9" in await refused(cluster, changed)


async def test_a_node_that_is_worked_on_stands_in_the_way(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX)
    made = await newest(cluster)
    async with cluster.registry.lock(web.id):
        with pytest.raises(vagoth.Busy):
            await cluster.undo(made)
    intent = Intent(action="start", txid="t", since=1.0, owner=this_process())
    record = replace(web.record, intent=intent)
    await cluster.registry.commit([Put(record)], expect={web.id: web.record.revision})
    assert "start begun by process" in await refused(cluster, made)


async def test_a_retried_undo_is_harmless(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX)
    made = await newest(cluster)
    await web.set(tags={"a": "1"})
    tagged = await newest(cluster)
    for txid in (tagged, made):
        assert await cluster.plan_undo(txid)
        assert await cluster.undo(txid) is not None
        position = cluster.registry.position
        assert await cluster.plan_undo(txid) == []
        assert await cluster.undo(txid) is None
        assert cluster.registry.position == position


async def test_a_plan_says_what_undo_then_does(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX, tags={"a": "1"})
    async with cluster.transaction() as tx:
        await web.set(name="www1", tags={"a": "2"})
        await cluster.new("web2", definition=LINUX)
        await cluster.delete("hv3")
    before = copy(cluster)
    plans = {plan.node: plan for plan in await cluster.plan_undo(tx.id)}
    assert copy(cluster) == before
    assert plans.keys() == {"www1", "web2", "hv3"}
    assert plans["www1"].changes == {
        "name": ("www1", "web1"),
        "tags": ({"a": "2"}, {"a": "1"}),
    }
    assert "remove web2" in plans["web2"].steps[0].text
    assert "add hv3" in plans["hv3"].steps[0].text
    assert not any(plan.hosts for plan in plans.values())
    await cluster.undo(tx.id)
    assert {"web1", "hv3"} < {*cluster.view.names()}
    assert "web2" not in cluster


async def test_others_in_between_are_told_from_the_transaction_itself(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX, tags={"a": "0", "b": "0"})
    async with cluster.transaction() as tx:
        await web.set(tags={"a": "1", "b": "1"})
    async with cluster.transaction() as other:
        await web.set(tags={"b": "other"})
    async with cluster.transaction() as again:
        await web.set(tags={"a": "2"})
    assert again.id in await refused(cluster, tx.id)
    await cluster.undo(again.id)
    assert web.tags == {"a": "1", "b": "other"}
    told = await refused(cluster, tx.id)
    assert "tags.b" in told
    assert other.id in told
    assert "tags.a" not in told


async def test_what_others_did_while_a_transaction_went_on_is_told_from_it(
    cluster: Cluster,
) -> None:
    web = await cluster.new("web1", definition=LINUX, tags={"a": "0", "b": "0", "c": "0"})
    outside = copy_context()

    async def others(**tags: str) -> str:
        async with cluster.transaction() as other:
            await web.set(tags=tags)
        return other.id

    async with cluster.transaction() as beside:
        await web.set(tags={"a": "1", "b": "1"})
        await asyncio.create_task(others(c="other"), context=outside)
        await web.set(tags={"a": "2"})
    await cluster.undo(beside.id)
    assert web.tags == {"a": "0", "b": "0", "c": "other"}
    async with cluster.transaction() as across:
        await web.set(tags={"b": "1"})
        other = await asyncio.create_task(others(b="other"), context=outside)
        await web.set(tags={"b": "2"})
    told = await refused(cluster, across.id)
    assert "tags.b" in told
    assert other in told


async def test_a_transaction_is_not_taken_back_inside_itself(cluster: Cluster) -> None:
    async with cluster.transaction() as tx:
        await cluster.new("web1", definition=LINUX)
        with pytest.raises(InvalidInput, match="in force"):
            await cluster.undo(tx.id)
    await cluster.undo(tx.id)
    assert "web1" not in cluster


# --- several processes ---------------------------------------------------------------------------

OTHER = """
import asyncio, sys, vagoth

async def main():
    async with vagoth.connect(store=sys.argv[1]) as cluster:
        async with cluster.transaction(source="other") as tx:
            await cluster.new("web9", definition={"memory": 64})
        print(tx.id, flush=True)
        mine = sys.stdin.readline().strip()
        await cluster.undo(mine)
        print((await cluster.undo(mine)) is None, "web1" in cluster, flush=True)

asyncio.run(main())
"""

Python = Callable[..., subprocess.Popen[str]]


async def test_each_process_sees_and_takes_back_what_the_other_did(
    cluster: Cluster, store: Path, python: Python
) -> None:
    await cluster.new("web1", definition=LINUX)
    mine = await newest(cluster)
    with python(OTHER, str(store)) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        theirs = (await asyncio.to_thread(other.stdout.readline)).strip()
        [commit] = await commits(cluster.history(txid=theirs))
        assert commit.source == "other"
        assert "web9" in (await cluster.at(theirs)).names()
        await cluster.undo(theirs)
        assert "web9" not in cluster
        other.stdin.write(f"{mine}\n")
        other.stdin.flush()
        assert (await asyncio.to_thread(other.stdout.readline)).split() == ["True", "False"]
    await cluster.registry.refresh()
    assert "web1" not in cluster


async def test_of_two_that_take_the_same_back_one_does_it(store: Path) -> None:
    async with vagoth.connect(store=store) as one, vagoth.connect(store=store) as two:
        node = await one.new("a", type="service", tags={"a": "1"})
        for number in range(5):
            await node.set(tags={"a": f"x{number}"})
            txid = await newest(one)
            done = await asyncio.gather(one.undo(txid), two.undo(txid))
            assert [commit is None for commit in done].count(True) == 1
            await one.registry.refresh()
            assert node.tags == {"a": "1"}


async def test_what_is_refused_changes_no_byte(store: Path) -> None:
    async with vagoth.connect(store=store) as cluster:
        node = await cluster.new("a", type="service")
        made = await newest(cluster)
        await node.set(tags={"a": "1"})

    def content() -> dict[str, bytes]:
        files = [path for path in store.parent.iterdir() if path.is_file()]
        return {path.name: path.read_bytes() for path in files if not os.path.islink(path)}

    before = content()
    async with vagoth.connect(store=store) as cluster:
        for call in (
            lambda: cluster.undo(made),
            lambda: cluster.undo("nonesuch22"),
            lambda: cluster.at("1w"),
            lambda: cluster.at("soon"),
            lambda: commits(cluster.history(node="b")),
        ):
            with pytest.raises(vagoth.VagothError):
                await call()
    assert content() == before
