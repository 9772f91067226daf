"""What every registry promises, as tests that a subclass runs over one implementation.

A test module makes a subclass whose name pytest collects, and gives it one fixture as a method
of the class::

    class TestTinyDB(RegistryConformance):
        @pytest.fixture
        async def client(self, tmp_path) -> AsyncIterator[Clients]: ...

``await client()`` opens the test's one registry once more: each call is another client, as
another process would be. The fixture closes them all. The registry does not exist before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import pytest

from vagoth import transaction
from vagoth.errors import (
    Busy,
    Conflict,
    InUse,
    InvalidInput,
    NodeNotFound,
    RegistryError,
    StaleRevision,
    Taken,
    VagothError,
    WatchGap,
)
from vagoth.model import Change, Commit, Delete, Put, Record
from vagoth.registry.base import Registry, Watch

Clients = Callable[[], Awaitable[Registry]]

#: How long anything may take before it counts as never.
NEVER_S = 10.0


def node(name: str, **fields: Any) -> Record:
    """A record whose id is made from its name."""
    return Record(**{"id": f"id-{name}", "name": name, **fields})


async def put(registry: Registry, *records: Record) -> Commit:
    """Commit the records, each decided on what the view holds of it."""
    expect = {
        record.id: old.revision if (old := registry.view.get(record.id)) else None
        for record in records
    }
    commit = await registry.commit([Put(record) for record in records], expect=expect)
    assert commit is not None
    return commit


def changed(record: Record | None, **fields: Any) -> Record:
    """The record with other fields."""
    assert record is not None
    return msgspec.structs.replace(record, **fields)


def revisions(registry: Registry, *ids: str) -> Mapping[str, str | None]:
    """What to expect of records as they are now."""
    found = {node_id: registry.view.get(node_id) for node_id in ids}
    return {node_id: record.revision if record else None for node_id, record in found.items()}


async def until(condition: Callable[[], object]) -> None:
    """Wait until it is true; give up when it counts as never."""
    async with asyncio.timeout(NEVER_S):
        while not condition():  # noqa: ASYNC110 - the point is that nobody tells us
            await asyncio.sleep(0.005)


async def following(watch: Watch, count: int) -> list[Commit]:
    """The next commits of a watch."""
    async with asyncio.timeout(NEVER_S):
        return [await anext(watch) for _ in range(count)]


def names(commits: Sequence[Commit]) -> list[str]:
    """The name of each commit's first record."""
    return [commit.changes[0].record.name for commit in commits]


async def outcome(awaitable: Awaitable[object]) -> object:
    """What it returns, or the error of ours that it raises."""
    try:
        return await awaitable
    except VagothError as error:
        return error


class RegistryConformance:
    """The suite. What it holds for one client and for several is the contract of ``base.py``."""

    @pytest.fixture
    async def registry(self, client: Clients) -> Registry:
        return await client()

    @pytest.fixture
    async def other(self, client: Clients) -> Registry:
        return await client()

    # --- commits --------------------------------------------------------------------------

    async def test_a_registry_that_is_not_there_yet_is_empty(self, registry: Registry) -> None:
        assert len(registry.view) == 0
        assert [commit async for commit in registry.history()] == []

    async def test_a_commit_is_in_the_view_when_it_returns(self, registry: Registry) -> None:
        commit = await put(registry, node("web1", keys=("ip:10.0.0.1",)))
        record = registry.view.by_name("web1")
        assert record is not None
        assert registry.view.by_key("ip:10.0.0.1") is record
        assert commit.position == registry.position
        assert [change.after for change in commit.changes] == [record]

    async def test_all_fields_come_back_as_they_were_put(
        self, registry: Registry, client: Clients
    ) -> None:
        await put(registry, node("hv1", type="hv"), node("web1"))
        record = node(
            "db1",
            type="service",
            state="wobbly",
            tenant="Zoë & söhne",
            parent="id-hv1",
            tags={"env": "prod", "flag": ""},
            keys=("asset:4711", "ip:10.0.0.9"),
            links={"members": ("id-web1", "id-hv1")},
            definition={"memory": "512MiB", "nics": [{"network": "lan", "n": 1.5}], "odd": None},
            metadata={"rack": "b4", "é": [True, 2**53 + 1]},
            alarm="duplicate",
        )
        await put(registry, record)
        for reader in (registry, await client()):
            found = reader.view.by_name("db1")
            given = changed(
                found,
                claimed_at=None,
                created=0.0,
                updated=0.0,
                state_since=0.0,
                revision="",
            )
            assert given == record
        found = registry.view.by_name("db1")
        assert found is not None
        assert found.created == found.updated == found.claimed_at == found.state_since > 0

    async def test_what_was_put_is_no_longer_the_callers(self, registry: Registry) -> None:
        definition = {"memory": "1GiB", "disks": [{"size": 1}]}
        await put(registry, node("web1", definition=definition))
        definition["memory"] = "2GiB"
        definition["disks"][0]["size"] = 2  # type: ignore[index]
        record = registry.view.by_name("web1")
        assert record is not None
        assert record.definition == {"memory": "1GiB", "disks": [{"size": 1}]}

    async def test_a_commit_is_whole_or_not_at_all(
        self, registry: Registry, other: Registry
    ) -> None:
        await put(registry, node("web1"))
        with pytest.raises(Taken):
            await put(registry, node("web2"), node("web3"), Record(id="x", name="web1"))
        await other.refresh()
        for reader in (registry, other):
            assert sorted(reader.view.names()) == ["web1"]

    async def test_a_commit_that_changes_nothing_is_none(self, registry: Registry) -> None:
        await put(registry, node("web1", tags={"a": "b"}))
        position = registry.position
        again = [Put(node("web1", tags={"a": "b"}))]
        assert await registry.commit(again, expect=revisions(registry, "id-web1")) is None
        assert await registry.commit([Delete("nobody")], expect={}) is None
        assert await registry.commit([], expect={}) is None
        assert registry.position == position

    async def test_a_deleted_node_leaves_everything_free(self, registry: Registry) -> None:
        await put(registry, node("web1", keys=("ip:1",)))
        await registry.commit([Delete("id-web1")], expect=revisions(registry, "id-web1"))
        assert len(registry.view) == 0
        await put(registry, Record(id="another", name="web1", keys=("ip:1",)))

    async def test_a_stale_revision_is_refused(self, registry: Registry, other: Registry) -> None:
        await put(registry, node("web1"))
        await other.refresh()
        expect = revisions(other, "id-web1")
        await put(registry, node("web1", tenant="a"))
        for changes in ([Put(node("web1", tenant="b"))], [Delete("id-web1")], []):
            with pytest.raises(StaleRevision):
                await other.commit(changes, expect=expect)
        record = other.view.by_name("web1")
        assert record is not None
        assert record.tenant == "a"

    async def test_records_that_are_not_changed_can_be_expected(self, registry: Registry) -> None:
        await put(registry, node("hv1"), node("web1"))
        expect = revisions(registry, "id-hv1", "id-web1")
        await put(registry, node("hv1", state="unreachable"))
        with pytest.raises(StaleRevision):
            await registry.commit([Put(node("web1", parent="id-hv1"))], expect=expect)

    async def test_a_change_without_its_revision_is_refused(self, registry: Registry) -> None:
        await put(registry, node("web1"))
        with pytest.raises(InvalidInput):
            await registry.commit([Put(node("web1", tenant="b"))], expect={})
        with pytest.raises(InvalidInput):
            await registry.commit([Delete("id-web1")], expect={})

    async def test_an_id_that_exists_is_not_made_again(self, registry: Registry) -> None:
        await put(registry, node("web1"))
        with pytest.raises(Taken) as caught:
            await registry.commit(
                [Put(Record(id="id-web1", name="web2"))], expect={"id-web1": None}
            )
        assert caught.value.holder == "web1"

    async def test_absent_keys_must_be_nobodys(self, registry: Registry) -> None:
        await put(registry, node("web1", keys=("ip:1",)))
        with pytest.raises(Taken) as caught:
            await registry.commit(
                [Put(node("web2"))], expect={"id-web2": None}, absent=["ip:2", "ip:1"]
            )
        assert (caught.value.value, caught.value.holder) == ("ip:1", "web1")
        await registry.commit([Put(node("web2"))], expect={"id-web2": None}, absent=["ip:2"])

    async def test_what_cannot_be_stored_is_refused_before_anything_changes(
        self, registry: Registry
    ) -> None:
        odd = [object(), float("nan"), float("inf"), "\ud800", {"deep": [{"er": float("nan")}]}]
        for value in odd:
            with pytest.raises(InvalidInput):
                await put(registry, node("web1", definition={"x": value}))
        nested: dict[str, Any] = {}
        for _ in range(100_000):
            nested = {"x": nested}
        with pytest.raises(InvalidInput):
            await put(registry, node("web1", definition=nested))
        for record in (
            node("web1", tags={"a": 5}),
            node("web1", keys=("nocolon",)),
            Record(id="x", name="a b"),
            Record(id="x/y", name="web1"),
        ):
            with pytest.raises(InvalidInput):
                await put(registry, record)
        assert len(registry.view) == 0

    async def test_one_commit_has_one_change_for_each_node(self, registry: Registry) -> None:
        with pytest.raises(InvalidInput):
            await registry.commit(
                [Put(node("web1")), Put(node("web1", tenant="x"))], expect={"id-web1": None}
            )

    async def test_a_commit_that_is_too_large_is_refused(self, registry: Registry) -> None:
        many: list[Change] = [Delete(f"n{number}") for number in range(registry.max_changes + 1)]
        with pytest.raises(InvalidInput):
            await registry.commit(many, expect={})
        large = node("web1", metadata={"x": "x" * (registry.max_bytes + 1)})
        with pytest.raises(InvalidInput):
            await put(registry, large)
        assert len(registry.view) == 0

    async def test_a_closed_registry_refuses(self, registry: Registry) -> None:
        await put(registry, node("web1"))
        await registry.close()
        await registry.close()
        with pytest.raises(RegistryError):
            await put(registry, node("web2"))

    async def test_what_was_committed_is_there_when_it_is_opened_again(
        self, registry: Registry, client: Clients
    ) -> None:
        await put(registry, *(node(f"n{number}") for number in range(20)))
        await registry.commit([Delete("id-n3")], expect=revisions(registry, "id-n3"))
        before = {record.id: record for record in registry.view}
        position = registry.position
        await registry.close()
        again = await client()
        assert {record.id: record for record in again.view} == before
        assert again.position == position

    # --- what is unique -------------------------------------------------------------------

    @pytest.mark.parametrize("what", ["name", "key", "id"])
    async def test_one_of_two_racing_clients_gets_it(self, client: Clients, what: str) -> None:
        clients = [await client() for _ in range(3)]
        for number in range(20):
            contenders = [
                Record(
                    id="same" + str(number) if what == "id" else f"c{which}-{number}",
                    name=f"same{number}" if what == "name" else f"n{which}-{number}",
                    keys=(f"ip:{number}",) if what == "key" else (),
                )
                for which in range(len(clients))
            ]
            outcomes = await asyncio.gather(
                *(
                    outcome(registry.commit([Put(record)], expect={record.id: None}))
                    for registry, record in zip(clients, contenders, strict=True)
                )
            )
            won = [result for result in outcomes if isinstance(result, Commit)]
            lost = [result for result in outcomes if isinstance(result, Taken)]
            assert (len(won), len(lost)) == (1, len(clients) - 1), outcomes
            assert {error.holder for error in lost} == {won[0].changes[0].record.name}

    async def test_names_can_be_swapped_in_one_commit(
        self, registry: Registry, other: Registry
    ) -> None:
        await put(registry, node("a", keys=("ip:1",)), node("b", keys=("ip:2",)))
        await put(
            registry,
            Record(id="id-a", name="b", keys=("ip:2",)),
            Record(id="id-b", name="a", keys=("ip:1",)),
        )
        await other.refresh()
        for reader in (registry, other):
            for name, key, node_id in (("a", "ip:1", "id-b"), ("b", "ip:2", "id-a")):
                record = reader.view.by_name(name)
                assert record is not None
                assert record.id == node_id
                assert reader.view.by_key(key) is record

    async def test_a_name_is_never_another_nodes_id(self, registry: Registry) -> None:
        await put(registry, Record(id="x", name="web1"))
        with pytest.raises(Taken):
            await put(registry, Record(id="y", name="x"))
        with pytest.raises(Taken):
            await put(registry, Record(id="web1", name="web2"))
        await put(registry, Record(id="same", name="same"))

    async def test_commits_that_wait_together_are_decided_one_after_the_other(
        self, registry: Registry
    ) -> None:
        """Sharing a write must not mean sharing a decision."""
        commits = [
            registry.commit(
                [Put(Record(id=f"n{number}", name="same"))], expect={f"n{number}": None}
            )
            for number in range(5)
        ]
        outcomes = await asyncio.gather(*(outcome(commit) for commit in commits))
        assert [type(result) for result in outcomes] == [Commit, Taken, Taken, Taken, Taken]
        record = registry.view.by_name("same")
        assert record is not None
        commit, later, gone = await asyncio.gather(
            put(registry, node("web1", parent=record.id)),
            outcome(registry.commit([Delete(record.id)], expect={record.id: record.revision})),
            outcome(registry.commit([Delete("id-web1")], expect={"id-web1": "never"})),
        )
        assert isinstance(commit, Commit)
        assert isinstance(later, InUse)
        assert isinstance(gone, StaleRevision)

    # --- relations ------------------------------------------------------------------------

    async def test_a_parent_must_exist_and_never_be_below(self, registry: Registry) -> None:
        await put(registry, node("a"), node("b", parent="id-a"), node("c", parent="id-b"))
        for record in (
            node("d", parent="nobody"),
            node("d", parent="id-d"),
            node("a", parent="id-c"),
        ):
            with pytest.raises(InvalidInput):
                await put(registry, record)

    async def test_a_link_must_lead_somewhere(self, registry: Registry) -> None:
        with pytest.raises(InvalidInput):
            await put(registry, node("a", links={"members": ("nobody",)}))
        await put(registry, node("a", links={"members": ("id-a", "id-b")}), node("b"))

    async def test_what_others_depend_on_is_not_deleted(self, registry: Registry) -> None:
        await put(registry, node("hv1"), node("vol1"))
        await put(
            registry, node("web1", parent="id-hv1"), node("db1", links={"attached": ("id-vol1",)})
        )
        for name, holder in (("hv1", "web1"), ("vol1", "db1")):
            with pytest.raises(InUse) as caught:
                await registry.commit(
                    [Delete(f"id-{name}")], expect=revisions(registry, f"id-{name}")
                )
            assert caught.value.holder == holder
        everything = ["id-hv1", "id-vol1", "id-web1", "id-db1"]
        await registry.commit(
            [Delete(node_id) for node_id in everything], expect=revisions(registry, *everything)
        )
        assert len(registry.view) == 0

    async def test_a_moved_node_remembers_where_it_was(self, registry: Registry) -> None:
        await put(registry, node("hv1"), node("hv2"), node("web1", parent="id-hv1"))
        await put(registry, changed(registry.view.by_name("web1"), parent="id-hv2"))
        record = registry.view.by_name("web1")
        assert record is not None
        assert (record.parent, record.former) == ("id-hv2", ("id-hv1",))

    # --- other clients, watching ------------------------------------------------------------

    async def test_other_clients_commits_arrive_by_themselves(
        self, registry: Registry, other: Registry
    ) -> None:
        for number in range(3):
            await put(registry, node(f"web{number}"))
            await until(lambda number=number: other.view.by_name(f"web{number}"))  # type: ignore[misc]
        await put(other, node("db1"))
        await until(lambda: registry.view.by_name("db1"))
        assert registry.position == other.position

    async def test_refresh_brings_all_that_was_committed_before(
        self, registry: Registry, other: Registry
    ) -> None:
        for number in range(30):
            await put(registry, node(f"web{number}"))
            await other.refresh()
            assert other.view.by_name(f"web{number}") is not None

    async def test_a_commit_is_decided_on_the_newest_there_is(
        self, registry: Registry, other: Registry
    ) -> None:
        await put(registry, node("web1", keys=("ip:1",)))
        with pytest.raises(Taken):
            await put(other, node("web2", keys=("ip:1",)))
        assert other.view.by_name("web1") is not None

    async def test_a_watch_sees_each_commit_once_and_in_order(
        self, registry: Registry, other: Registry
    ) -> None:
        watches = [registry.watch(), other.watch()]
        for number in range(20):
            await put((registry, other)[number % 2], node(f"n{number}"))
        seen = [await following(watch, 20) for watch in watches]
        assert names(seen[0]) == [f"n{number}" for number in range(20)]
        assert seen[0] == seen[1]

    async def test_the_view_holds_a_commit_when_a_watch_hands_it_over(
        self, registry: Registry, other: Registry
    ) -> None:
        watch = other.watch()
        await put(registry, node("web1"))
        await following(watch, 1)
        assert other.view.by_name("web1") is not None

    async def test_a_watch_since_a_position_skips_nothing(
        self, registry: Registry, other: Registry
    ) -> None:
        start = registry.position
        commits = [await put(registry, node(f"n{number}", tenant="a")) for number in range(10)]
        commits.append(await put(registry, node("n3", tenant="b")))
        commits.append(
            (await registry.commit([Delete("id-n5")], expect=revisions(registry, "id-n5")))
            or pytest.fail("nothing deleted")
        )
        await other.refresh()
        for reader in (registry, other):
            everything = reader.watch(since=start)
            half = reader.watch(since=commits[4].position)
            nothing = reader.watch(since=commits[-1].position)
            assert await following(everything, len(commits)) == commits
            assert await following(half, len(commits) - 5) == commits[5:]
            commits.append(await put(registry, node(f"later{len(commits)}")))
            for watch in (everything, half, nothing):
                assert await following(watch, 1) == commits[-1:]
            await other.refresh()

    async def test_a_cancelled_watcher_goes_on_where_it_was(self, registry: Registry) -> None:
        start = registry.position
        for number in range(5):
            await put(registry, node(f"n{number}"))
        watch = registry.watch(since=start)
        seen: list[Commit] = []
        while len(seen) < 5:
            task = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
            if task.done() or len(seen) % 2:
                seen.append(await task)
            else:
                task.cancel()
                try:
                    seen.append(await task)
                except asyncio.CancelledError:
                    seen.extend(await following(watch, 1))
        assert names(seen) == [f"n{number}" for number in range(5)]

    async def test_a_position_of_nobody_is_a_gap(self, registry: Registry) -> None:
        await put(registry, node("web1"))
        for position in ("", "nonsense", "0:0:0", f"x{registry.position}"):
            with pytest.raises(WatchGap):
                await following(registry.watch(since=position), 1)

    async def test_watches_end_when_the_registry_is_closed(self, registry: Registry) -> None:
        watch = registry.watch()
        await put(registry, node("web1"))
        await registry.close()
        async with asyncio.timeout(NEVER_S):
            assert names([commit async for commit in watch]) == ["web1"]

    async def test_listeners_hear_of_own_and_others_commits(
        self, registry: Registry, other: Registry
    ) -> None:
        heard: list[Commit] = []
        stop = other.listen(heard.append)
        await put(registry, node("a"))
        await put(other, node("b"))
        assert names(heard) == ["a", "b"]
        stop()
        await put(other, node("c"))
        assert len(heard) == 2

    # --- update -----------------------------------------------------------------------------

    async def test_no_update_is_lost_however_many_write(self, client: Clients) -> None:
        clients = [await client() for _ in range(3)]
        await put(clients[0], node("web1", metadata={"n": 0}))
        await asyncio.gather(*(registry.refresh() for registry in clients))

        def increment(record: Record) -> Record:
            return changed(record, metadata={"n": record.metadata["n"] + 1})

        async def count(registry: Registry) -> None:
            for _ in range(15):
                await registry.update("id-web1", increment)

        await asyncio.gather(*(count(registry) for registry in clients for _ in range(2)))
        for registry in clients:
            await registry.refresh()
            record = registry.view.by_name("web1")
            assert record is not None
            assert record.metadata == {"n": 90}

    async def test_updating_what_is_gone_says_so(self, registry: Registry) -> None:
        with pytest.raises(NodeNotFound):
            await registry.update("nobody", lambda record: record)

    async def test_a_cancelled_commit_is_settled_before_it_says_so(
        self, registry: Registry, other: Registry
    ) -> None:
        for number in range(30):
            task = asyncio.ensure_future(put(registry, node(f"n{number}")))
            for _ in range(number % 6):
                await asyncio.sleep(0.0003 if number % 2 else 0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            happened = registry.view.by_name(f"n{number}") is not None
            await other.refresh()
            assert (other.view.by_name(f"n{number}") is not None) is happened
        await put(registry, node("last"))

    async def test_a_cancelled_refresh_loses_nothing(
        self, registry: Registry, other: Registry
    ) -> None:
        """What was read and not shown must be read again, and never be written over."""
        for number in range(40):
            await put(registry, *(node(f"n{number}-{each}") for each in range(3)))
            task = asyncio.ensure_future(other.refresh())
            for _ in range(number % 5):
                await asyncio.sleep(0.0002 if number % 2 else 0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            if number % 3 == 0:
                await put(other, node(f"m{number}"))
        await registry.refresh()
        await other.refresh()
        assert len(registry.view) == len(other.view) == 40 * 3 + 14

    # --- history, transactions ----------------------------------------------------------------

    async def test_commits_carry_their_transaction(
        self, registry: Registry, other: Registry
    ) -> None:
        watch = other.watch()
        with transaction.transaction(source="deploy", reason="CHG-1") as tx:
            await put(registry, node("web1"))
            await put(registry, node("web2"))
        await put(registry, node("web3"))
        first, second, third = await following(watch, 3)
        assert (first.txid, first.source, first.reason) == (tx.id, "deploy", "CHG-1")
        assert second.txid == tx.id
        assert third.txid not in ("", tx.id)
        assert third.source

    async def test_history_is_newest_first_and_meets_every_condition(
        self, registry: Registry, client: Clients
    ) -> None:
        with transaction.transaction(source="deploy") as tx:
            for number in range(5):
                await put(registry, node(f"n{number}"))
            await put(registry, node("n1", tenant="a"))
        last = await put(registry, node("n1", tenant="b"))
        await registry.commit([Delete("id-n2")], expect=revisions(registry, "id-n2"))
        reader = await client()

        async def found(**conditions: Any) -> list[str]:
            return names([commit async for commit in reader.history(**conditions)])

        everything = ["n2", "n1", "n1", "n4", "n3", "n2", "n1", "n0"]
        assert await found() == everything
        assert await found(node_id="id-n1") == ["n1", "n1", "n1"]
        assert await found(node_id="id-n2") == ["n2", "n2"]
        assert await found(txid=tx.id) == everything[2:]
        assert await found(txid=tx.id, node_id="id-n1", limit=1) == ["n1"]
        assert await found(since=last.time) == everything[: len(await found(since=last.time))]
        assert len(await found(since=last.time)) >= 2
        assert await found(since=last.time + 1000) == []
        assert await found(limit=3) == everything[:3]
        assert await found(limit=0) == []
        [newest] = [commit async for commit in reader.history(node_id="id-n1", limit=1)]
        assert newest == last
        assert newest.changes[0].before is not None
        assert newest.changes[0].before.tenant == "a"
        assert set(newest.changes[0].fields()) == {"tenant"}

    # --- node locks -----------------------------------------------------------------------------

    async def test_a_lock_excludes_everybody_else(
        self, registry: Registry, other: Registry
    ) -> None:
        await put(registry, node("web1"))
        await other.refresh()
        with transaction.transaction(source="deploy") as tx:
            async with registry.lock("id-web1") as holder:
                assert (holder.txid, holder.source) == (tx.id, "deploy")
                for contender in (registry, other):
                    with pytest.raises(Busy) as caught:
                        async with contender.lock("id-web1"):
                            pass
                    message = str(caught.value)
                    assert "web1 is being worked on" in message
                    assert str(holder.process) in message
                    assert tx.id in message
                    assert str(holder) == caught.value.holder
                assert await registry.holder("id-web1") == holder
                assert await other.holder("id-web1") == holder
                async with other.lock("id-web2"):
                    pass
        for reader in (registry, other):
            assert await reader.holder("id-web1") is None
        async with other.lock("id-web1"):
            pass

    async def test_a_lock_is_let_go_however_its_block_ends(self, registry: Registry) -> None:
        with pytest.raises(ZeroDivisionError):
            async with registry.lock("a"):
                raise ZeroDivisionError
        task = asyncio.ensure_future(self._hold(registry, "a", asyncio.Event()))
        await asyncio.sleep(0.05)
        assert await registry.holder("a") is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with registry.lock("a"):
            pass

    async def test_waiting_for_a_lock_ends_when_it_is_free(
        self, registry: Registry, other: Registry
    ) -> None:
        done = asyncio.Event()
        task = asyncio.ensure_future(self._hold(registry, "a", done))
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.2, done.set)
        with pytest.raises(Busy):
            async with other.lock("a", wait_s=0.05):
                pass
        async with other.lock("a", wait_s=NEVER_S):
            assert task.done() or done.is_set()
        await task

    async def test_never_two_hold_a_lock(self, client: Clients) -> None:
        clients = [await client() for _ in range(3)]
        inside = 0
        most = 0

        async def work(registry: Registry) -> None:
            nonlocal inside, most
            for _ in range(5):
                async with registry.lock("a", wait_s=NEVER_S):
                    inside += 1
                    most = max(most, inside)
                    await asyncio.sleep(0.001)
                    inside -= 1

        await asyncio.gather(*(work(registry) for registry in clients for _ in range(2)))
        assert most == 1

    @pytest.mark.parametrize(
        "node_id", [".", "..", "%", "%2e", "a%2Fb", "é" * 63, "𝕏" * 63, "~", "CON", "a\\b", "'$x"]
    )
    async def test_any_id_can_be_locked(self, registry: Registry, node_id: str) -> None:
        async with registry.lock(node_id), registry.lock("another"):
            assert await registry.holder(node_id) is not None
            with pytest.raises(Busy):
                async with registry.lock(node_id):
                    pass
        assert await registry.holder(node_id) is None

    async def test_conflicts_are_conflicts(self) -> None:
        """Whoever catches the family must not miss a member."""
        for kind in (Taken, StaleRevision, InUse, Busy):
            assert issubclass(kind, Conflict)

    @staticmethod
    async def _hold(registry: Registry, node_id: str, done: asyncio.Event) -> None:
        async with registry.lock(node_id):
            await done.wait()
