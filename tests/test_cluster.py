"""The front door: nodes made, found, changed and removed; what is refused changes nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tinydb import TinyDB, where

import vagoth
from vagoth import VM, Cluster, Commit, Node, State

LINUX = {"memory": "256MiB"}


async def test_the_sketch_in_the_readme_holds(store: Path) -> None:
    async with vagoth.connect(store=store, sim=2) as cluster:
        web = await cluster.new(
            "web1",
            definition={"memory": "512MiB", "vcpus": 1, "nics": [{"network": "lan"}]},
            tags={"env": "prod"},
            keys=["asset:4711"],
        )
        assert (web.type, web.state, web.parent) == ("vm", "new", None)
        await web.start()
        assert web.state == State.RUNNING
        assert web.parent in cluster.nodes(type="hv")
        await web.set(name="www1", tags={"env": "test"}, metadata={"rack": "b4"})
        assert cluster["www1"] == web == cluster.get(key="asset:4711")
        assert "web1" not in cluster
        assert cluster.nodes(type="vm", state="running", tags={"env": "test"}).names == ["www1"]
        await web.set(metadata={"rack": None})
        assert web.metadata == {}


async def test_connect_can_be_awaited_instead(store: Path) -> None:
    cluster = await vagoth.connect(store=store, sim=1)
    assert cluster.nodes().names == ["hv1"]
    await cluster.close()


async def test_opening_a_store_that_is_not_there_makes_nothing(store: Path) -> None:
    async with vagoth.connect(store=store) as cluster:
        assert len(cluster) == 0
    assert not store.exists()


async def test_a_handle_is_live_and_outlives_its_node(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX)
    same = cluster["web1"]
    await web.set(tags={"a": "1"})
    assert same.tags == {"a": "1"}
    await web.delete()
    assert same.is_deleted
    assert same.name == "web1"
    with pytest.raises(vagoth.NodeNotFound):
        await same.set(name="web2")


async def test_what_a_handle_shows_cannot_be_changed_in_place(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition={**LINUX, "nics": [{"network": "lan"}]})
    with pytest.raises(TypeError, match="read-only"):
        web.definition["memory"] = 1  # type: ignore[index]
    with pytest.raises(TypeError, match="read-only"):
        web.definition["nics"].append({})
    with pytest.raises(TypeError, match="read-only"):
        web.tags["x"] = "y"  # type: ignore[index]


async def test_two_writers_of_different_tags_both_keep_theirs(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX)
    await asyncio.gather(*(web.set(tags={f"t{number}": "x"}) for number in range(20)))
    assert len(web.tags) == 20


async def test_a_taken_name_or_key_names_its_owner(cluster: Cluster) -> None:
    await cluster.new("web1", definition=LINUX, keys=["asset:1"])
    with pytest.raises(vagoth.Taken) as caught:
        await cluster.new("web1", definition=LINUX)
    assert caught.value.holder == "web1"
    with pytest.raises(vagoth.Taken, match="asset:1"):
        await cluster.new("web2", definition=LINUX, keys=["asset:1"])
    with pytest.raises(vagoth.Taken):
        await cluster.new(cluster["web1"].id, definition=LINUX)
    assert "web2" not in cluster


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"definition": {"memory": "lots"}}, "memory"),
        ({"definition": {"memory": -1}}, "memory"),
        ({"definition": {"memory": 1, "vcpus": 0}}, "vcpus"),
        ({"definition": {"memroy": 1}}, "did you mean memory"),
        ({"definition": {}}, "memory is missing"),
        ({"definition": LINUX, "keys": ["nocolon"]}, "kind:value"),
        ({"definition": LINUX, "keys": ["a:" + "x" * 300]}, "255"),
        ({"definition": LINUX, "keys": ["mac:52:54:00:00:00:01"]}, "follows from the definition"),
        ({"definition": LINUX, "id": "a/b"}, "id"),
        ({"definition": LINUX, "tags": {"a\n": "b"}}, "tag"),
        ({"definition": LINUX, "state": "running"}, "state"),
        ({"definition": LINUX, "parent": "hv1"}, "parent"),
        ({"definition": {}, "type": "lorry"}, "one of"),
        ({"definition": {"driver": "vmware"}, "type": "hv"}, "one of libvirt, sim"),
        ({"definition": {}, "type": "hv"}, "driver"),
        ({"definition": {"driver": "sim", "cpsu": 3}, "type": "hv"}, "did you mean cpus"),
    ],
)
async def test_bad_input_is_refused_whole(
    cluster: Cluster, given: dict[str, Any], says: str
) -> None:
    before = cluster.registry.position
    with pytest.raises(vagoth.InvalidInput, match=says):
        await cluster.new("web1", **given)
    assert "web1" not in cluster
    assert cluster.registry.position == before


@pytest.mark.parametrize(
    "name", ["", "-x", "a b", "a/b", "a:b", "a*", "a?", "x" * 64, "a\nb", "\x1b"]
)
async def test_names_that_would_make_trouble_are_refused(cluster: Cluster, name: str) -> None:
    with pytest.raises(vagoth.InvalidInput):
        await cluster.new(name, definition=LINUX)


@pytest.mark.parametrize("name", ["$(reboot)", '<x>&"', "ünï", "web.example.org", "x" * 63, "#1"])
async def test_odd_names_are_only_names(cluster: Cluster, name: str) -> None:
    node = await cluster.new(name, definition=LINUX)
    await node.start()
    assert cluster[name].state == State.RUNNING
    await node.stop()


async def test_tinydb_queries_select(cluster: Cluster) -> None:
    for number in range(12):
        await cluster.new(f"web{number}", definition={"memory": 128 + number}, tenant="shop")
    big = cluster.nodes(where("definition").memory > 137, type="vm")
    assert big.names == ["web10", "web11"]
    assert cluster.nodes("web1*", where("tenant") == "shop").names == ["web1", "web10", "web11"]
    assert [node["name"] for node in big[:1].to_dicts()] == ["web10"]
    assert big.filter(lambda node: node.name == "web11").names == ["web11"]


async def test_to_pandas_is_a_table_by_name(cluster: Cluster) -> None:
    pytest.importorskip("pandas", reason="the extra vagoth[pandas] is not installed")
    await cluster.new("web1", definition=LINUX)
    frame = cluster.nodes().to_pandas()
    assert list(frame.index) == ["hv1", "hv2", "hv3", "web1"]
    assert frame.loc["web1"]["type"] == "vm"


async def test_select_resolves_everything_or_nothing(cluster: Cluster) -> None:
    await cluster.new("web1", definition=LINUX, keys=["asset:1"])
    assert cluster.select(["hv*", "asset:1", "hv1"]).names == ["hv1", "hv2", "hv3", "web1"]
    with pytest.raises(vagoth.NodeNotFound) as caught:
        cluster.select(["web1", "wbe1"])
    assert caught.value.nearest == "web1"
    with pytest.raises(vagoth.InvalidInput, match="hv1 is a hv, not a vm"):
        cluster.select(["hv1"], type="vm")


async def test_links_go_with_their_target(cluster: Cluster) -> None:
    web = await cluster.new("web1", definition=LINUX)
    shop = await cluster.new("shop", type="service", links={"members": [web, "hv1"]})
    assert [node.name for node in shop.links["members"]] == ["web1", "hv1"]
    await web.delete()
    assert shop.to_dict()["links"] == {"members": ["hv1"]}


async def test_a_state_is_the_users_only_where_no_driver_writes_it(cluster: Cluster) -> None:
    shop = await cluster.new("shop", type="service")
    await shop.set(state="degraded")
    assert shop.state == "degraded"
    with pytest.raises(vagoth.InvalidInput, match="seen on hosts"):
        await cluster["hv1"].set(state="up")


async def test_parents_make_no_rings(cluster: Cluster) -> None:
    outer = await cluster.new("outer", type="service")
    inner = await cluster.new("inner", type="service", parent=outer)
    with pytest.raises(vagoth.InvalidInput, match="no rings"):
        await outer.set(parent=inner)
    with pytest.raises(vagoth.InUse, match="outer carries inner"):
        await outer.delete()
    assert outer.children.names == ["inner"]


async def test_a_transaction_gives_its_commits_one_id_and_keeps_it_when_nested(
    cluster: Cluster,
) -> None:
    async with cluster.transaction(source="deploy", reason="CHG-1") as tx:
        await cluster.new("web1", definition=LINUX)
        async with cluster.transaction(reason="inner") as inner:
            await cluster.vm("web1").start()
        assert inner.id == tx.id
    commits = [commit async for commit in cluster.registry.history(txid=tx.id)]
    assert len(commits) >= 3
    assert {commit.source for commit in commits} <= {"deploy", "monitor"}
    assert commits[-1].reason == "CHG-1"
    assert commits[0].reason.startswith("CHG-1 > inner")


async def test_watch_begins_when_it_is_made(cluster: Cluster) -> None:
    async with cluster.watch(follow=False) as watch:
        await cluster.new("web1", definition=LINUX)
        await cluster["web1"].set(tags={"a": "1"})
        first: Commit = await anext(watch)
        second = await anext(watch)
    assert [change.record.name for change in first.changes] == ["web1"]
    assert [list(change.fields()) for change in second.changes] == [["tags"]]
    async with cluster.watch(since=first.position, follow=False) as again:
        assert (await anext(again)).position == second.position


async def test_a_dry_run_says_what_would_be_and_does_nothing(cluster: Cluster) -> None:
    plan = cluster.plan_new("web1", definition=LINUX, tags={"a": "1"})
    assert plan.changes["name"] == (None, "web1")
    assert "web1" not in cluster
    web = await cluster.new("web1", definition=LINUX)
    position = cluster.registry.position
    start = web.plan("start", on="hv2")
    assert start.hosts == ("hv2",)
    assert start.changes["parent"] == (None, "hv2")
    assert web.plan("set", tags={"b": "2"}).changes == {"tags": ({}, {"b": "2"})}
    assert web.plan("delete").steps
    with pytest.raises(vagoth.JobFailed):
        web.plan("reboot")
    assert cluster.registry.position == position


async def test_the_store_is_a_tinydb_file(store: Path) -> None:
    async with vagoth.connect(store=store, sim=1) as cluster:
        await cluster.new("web1", definition=LINUX)
        await cluster.vm("web1").start()
        await cluster["web1"].set(name="www1")
    with TinyDB(store, access_mode="r") as db:
        [found] = db.table("nodes").search(where("name") == "www1")
    assert found["state"] == "running"


class Rack(Node):
    """A type of a user's own."""

    type = "rack"
    initial_state = "planned"


async def test_a_type_of_ones_own_is_named_in_the_configuration(store: Path) -> None:
    Path("vagoth.toml").write_text(
        f'[store]\npath = "{store}"\n[nodes]\nrack = "tests.test_cluster:Rack"\n'
    )
    async with vagoth.connect() as cluster:
        rack = await cluster.new("r1", type="rack", definition={"units": 42})
        assert type(rack).__name__ == "Rack"
        assert rack.state == "planned"
        assert cluster.nodes(type="rack").names == ["r1"]


async def test_a_class_that_will_not_do_is_refused_by_name(store: Path) -> None:
    Path("vagoth.toml").write_text(
        '[nodes]\nrack = "pathlib:Path"\nshed = "nowhere:Shed"\n'
        '[allocator]\nclass = "pathlib:Path"\n'
    )
    with pytest.raises(vagoth.InvalidInput, match=r"vagoth\.Allocator"):
        await vagoth.connect(store=store)
    Path("vagoth.toml").write_text('[nodes]\nrack = "pathlib:Path"\nshed = "nowhere:Shed"\n')
    async with vagoth.connect(store=store) as cluster:
        with pytest.raises(vagoth.InvalidInput, match="a class that inherits"):
            await cluster.new("r1", type="rack")
        with pytest.raises(vagoth.InvalidInput, match="nowhere"):
            await cluster.new("r1", type="shed")


async def test_a_vm_by_another_name_is_a_vm(store: Path) -> None:
    Path("vagoth.toml").write_text('[nodes]\ndb = "tests.test_cluster:Database"\n')
    async with vagoth.connect(store=store, sim=1) as cluster:
        node = await cluster.new("db1", type="db", definition=LINUX)
        await cluster.submit(node, "start")
        assert node.state == State.RUNNING
        assert node.parent == cluster["hv1"]
        with pytest.raises(vagoth.InUse):
            await node.delete()
        with pytest.raises(vagoth.InvalidInput, match="claim a host"):
            await node.set(parent="hv1")


class Database(VM):
    """A VM of a type of a user's own."""

    type = "db"


async def test_a_type_whose_class_fails_can_be_read_and_not_changed(store: Path) -> None:
    async with vagoth.connect(store=store, sim=1) as cluster:
        await (await cluster.new("web1", definition=LINUX)).start()
    Path("vagoth.toml").write_text('[nodes]\nvm = "nowhere:VM"\n')
    async with vagoth.connect(store=store) as cluster:
        assert cluster["web1"].state == State.RUNNING
        for verb, given in (("set", {"state": "new"}), ("delete", {}), ("stop", {})):
            with pytest.raises(vagoth.InvalidInput, match="nowhere"):
                await cluster.submit("web1", verb, **given)
