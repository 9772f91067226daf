"""Whatever several clients do in whatever order, all of them see what a plain dict would hold."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tinydb
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.registry.conformance import changed, outcome, put
from vagoth.errors import InUse, InvalidInput, StaleRevision, Taken, VagothError
from vagoth.model import Commit, Delete, Put, Record
from vagoth.registry.survey import survey
from vagoth.registry.tinydb import TinyDBRegistry

CLIENTS = 3
IDS = [f"i{number}" for number in range(6)]
NAMES = [f"n{number}" for number in range(6)]
KEYS = [f"ip:{number}" for number in range(4)]

who = st.integers(0, CLIENTS - 1)
ids = st.sampled_from(IDS)
names = st.sampled_from(NAMES)
keys = st.sets(st.sampled_from(KEYS), max_size=2).map(lambda found: tuple(sorted(found)))
parents = st.none() | ids


class Plain:
    """What should be: records in a dict, and the rules in their simplest form."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def verdict(self, wanted: dict[str, dict[str, Any] | None]) -> type[VagothError] | None:
        """Why these nodes may not be put (or deleted: none), if they may not."""
        after = {**self.nodes, **wanted}
        nodes = {node_id: found for node_id, found in after.items() if found is not None}
        taken = [found["name"] for found in nodes.values()]
        taken += [key for found in nodes.values() for key in found["keys"]]
        if len(set(taken)) < len(taken):
            return Taken
        for node_id, found in nodes.items():
            seen = {node_id}
            while (parent := found["parent"]) is not None:
                if parent in wanted and wanted[parent] is None and node_id not in wanted:
                    return InUse
                if parent in seen or parent not in nodes:
                    return InvalidInput
                seen.add(parent)
                found = nodes[parent]
        return None

    def apply(self, wanted: dict[str, dict[str, Any] | None]) -> None:
        """Make it so."""
        for node_id, found in wanted.items():
            if found is None:
                self.nodes.pop(node_id, None)
            else:
                self.nodes[node_id] = found


def shape(record: Record) -> dict[str, Any]:
    """What the plain dict says of a record."""
    return {"name": record.name, "keys": record.keys, "parent": record.parent}


class Clients(RuleBasedStateMachine):
    """Several clients of one store, and a plain dict."""

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "store.json"
        self.runner = asyncio.Runner()
        self.plain = Plain()
        self.commits: list[Commit] = []
        self.pruned = 0  # of those
        self.clients = [self.opened() for _ in range(CLIENTS)]
        self.watch = self.clients[0].watch()

    def opened(self) -> TinyDBRegistry:
        registry = TinyDBRegistry(self.path)
        self.runner.run(registry.open())
        return registry

    def attempt(self, client: int, wanted: dict[str, dict[str, Any] | None]) -> None:
        """Do it through a client that has seen everything, and compare how it ends."""
        registry = self.clients[client]
        self.runner.run(registry.refresh())
        records = {node_id: registry.view.get(node_id) for node_id in wanted}
        changes = [
            Delete(node_id)
            if found is None
            else Put(
                msgspec.structs.replace(records[node_id] or Record(id=node_id, name=""), **found)
            )
            for node_id, found in wanted.items()
        ]
        expect = {node_id: old.revision if old else None for node_id, old in records.items()}
        verdict = self.plain.verdict(wanted)
        ended = self.runner.run(outcome(registry.commit(changes, expect=expect)))
        if isinstance(ended, VagothError):
            assert verdict is not None, ended
            # A commit may break two rules; which one is named first is not promised.
            assert isinstance(ended, Taken | InUse | InvalidInput)
            return
        assert verdict is None
        before = dict(self.plain.nodes)
        self.plain.apply(wanted)
        assert (ended is None) == (before == self.plain.nodes)
        if isinstance(ended, Commit):
            self.commits.append(ended)

    @rule(client=who, node_id=ids, name=names, keys=keys, parent=parents)
    def put(
        self, client: int, node_id: str, name: str, keys: tuple[str, ...], parent: str | None
    ) -> None:
        self.attempt(client, {node_id: {"name": name, "keys": keys, "parent": parent}})

    @rule(client=who, node_id=ids)
    def delete(self, client: int, node_id: str) -> None:
        self.attempt(client, {node_id: None})

    @rule(client=who, left=ids, right=ids)
    def swap(self, client: int, left: str, right: str) -> None:
        if left in self.plain.nodes and right in self.plain.nodes and left != right:
            one, two = self.plain.nodes[left], self.plain.nodes[right]
            self.attempt(
                client,
                {
                    left: {**one, "name": two["name"], "keys": two["keys"]},
                    right: {**two, "name": one["name"], "keys": one["keys"]},
                },
            )

    @rule(client=who, several=st.dictionaries(ids, st.none() | st.tuples(names, keys, parents)))
    def put_several(
        self,
        client: int,
        several: dict[str, tuple[str, tuple[str, ...], str | None] | None],
    ) -> None:
        self.attempt(
            client,
            {
                node_id: dict(zip(("name", "keys", "parent"), found, strict=True))
                if found
                else None
                for node_id, found in several.items()
            },
        )

    @rule(first=who, second=who, node_id=ids)
    def race(self, first: int, second: int, node_id: str) -> None:
        """Two clients that have read the same change the same record at the same time."""
        if first == second or node_id not in self.plain.nodes:
            return
        clients = [self.clients[first], self.clients[second]]
        number = len(self.commits)

        async def attempts() -> list[object]:
            for client in clients:
                await client.refresh()
            return await asyncio.gather(
                *(
                    outcome(
                        put(client, changed(client.view.get(node_id), tenant=f"{number}-{side}"))
                    )
                    for side, client in enumerate(clients)
                )
            )

        outcomes = self.runner.run(attempts())
        won = [found for found in outcomes if isinstance(found, Commit)]
        assert len(won) == 1
        assert all(isinstance(found, Commit | StaleRevision) for found in outcomes)
        self.commits += won

    @rule(client=st.integers(1, CLIENTS - 1))
    def reopen(self, client: int) -> None:
        self.runner.run(self.clients[client].close())
        self.clients[client] = self.opened()

    @rule(client=who)
    def compact(self, client: int) -> None:
        self.runner.run(self.clients[client].compact())

    @rule(client=who)
    def prune(self, client: int) -> None:
        done = self.runner.run(self.clients[client].prune(float("inf")))
        assert done.commits == len(self.commits) - self.pruned
        self.pruned = len(self.commits)

    @rule()
    def crash(self) -> None:
        """What a copy of the files holds at any time is everything."""
        copy = Path(tempfile.mkdtemp(dir=self.directory))
        for file in (self.path, self.path.with_name("store.json.journal")):
            if file.exists():
                shutil.copy(file, copy)
        if self.plain.nodes or self.commits:
            assert survey(copy / "store.json").findings == []
        registry = TinyDBRegistry(copy / "store.json")
        self.runner.run(registry.open())
        assert {found.id: shape(found) for found in registry.view} == self.plain.nodes
        self.runner.run(registry.close())

    @invariant()
    def all_clients_agree(self) -> None:
        for client in self.clients:
            self.runner.run(client.refresh())
            assert {found.id: shape(found) for found in client.view} == self.plain.nodes
            for found in client.view:
                assert client.view.by_name(found.name) is found
                assert all(client.view.by_key(key) is found for key in found.keys)
                assert {child.id for child in client.view.children(found.id)} == {
                    node_id
                    for node_id, other in self.plain.nodes.items()
                    if other["parent"] == found.id
                }

    def teardown(self) -> None:
        async def seen() -> list[Commit]:
            await self.clients[0].refresh()
            past = [commit async for commit in self.clients[1].history()]
            assert [*reversed(past)] == self.commits[self.pruned :]
            return [await anext(self.watch) for _ in self.commits]

        try:
            assert self.runner.run(seen()) == self.commits
            for client in self.clients:
                self.runner.run(client.close())
            if self.path.exists():
                with tinydb.TinyDB(self.path) as db:
                    found = {each["id"]: each["name"] for each in db.table("nodes").all()}
                assert found == {key: each["name"] for key, each in self.plain.nodes.items()}
        finally:
            self.runner.close()
            shutil.rmtree(self.directory)


TestClients = pytest.mark.timeout(120)(Clients.TestCase)
TestClients.settings = settings(
    max_examples=100,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
