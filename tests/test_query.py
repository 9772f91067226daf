"""An index never changes what a query finds, only how much has to be looked at."""

from __future__ import annotations

import operator
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
import tinydb
from hypothesis import given, reject
from hypothesis import strategies as st
from tinydb import Query, where
from tinydb.queries import QueryInstance
from tinydb.storages import MemoryStorage

import vagoth
from vagoth.errors import InvalidInput
from vagoth.model import Holder, Intent, Record, State
from vagoth.query import Among, Document, Either, Every, every, hint_of
from vagoth.view import View

VALUES = ["a", "b", "running", "i1", "k:1", "k:2", ""]

_records = st.lists(
    st.builds(
        Record,
        id=st.sampled_from([f"i{number}" for number in range(9)]),
        name=st.sampled_from([f"n{number}" for number in range(9)]),
        type=st.sampled_from(["vm", "a"]),
        state=st.sampled_from(["new", "running", State.STOPPED]),
        parent=st.none() | st.sampled_from(["i1", "a"]),
        tenant=st.none() | st.sampled_from(["a", "b"]),
        tags=st.dictionaries(st.sampled_from(["a", "b", "a=b"]), st.sampled_from(VALUES)),
        keys=st.sets(st.sampled_from(["k:1", "k:2", "k:3"]), max_size=1).map(tuple),
        links=st.dictionaries(
            st.sampled_from("ab"), st.lists(st.sampled_from(["i1", "a"])).map(tuple)
        ),
        metadata=st.dictionaries(
            st.sampled_from(["state", "a"]), st.sampled_from(["a", "running", 5])
        ),
    ),
    unique_by=(lambda record: record.id, lambda record: record.name, lambda record: record.keys),
    max_size=9,
)

_fields = st.sampled_from(
    ["id", "name", "type", "state", "parent", "tenant", "keys", "metadata", "links", "tags", "no"]
)
_paths = st.one_of(
    st.tuples(_fields),
    st.tuples(
        st.sampled_from(["tags", "links", "metadata", "state"]),
        st.sampled_from(["a", "b", "a=b", "state"]),
    ),
    st.tuples(_fields, st.just(None)),
)
_values = st.one_of(
    st.sampled_from([*VALUES, State.RUNNING, State.STOPPED, "n1"]), st.none(), st.just(5)
)
_lists = st.lists(_values, max_size=3) | st.frozensets(_values, max_size=3)


def at(path: tuple[str | None, ...]) -> Query:
    """A query on that path. Where it is None, something changes the value."""
    query = Query()
    for part in path:
        query = query[part] if part is not None else query.map(lambda value: value)
    return query


def said(path: tuple[str | None, ...], method: str, *arguments: Any) -> QueryInstance:
    query: QueryInstance = getattr(at(path), method)(*arguments)
    return query


def a(value: object) -> bool:
    return value == "a"


_leaves = st.one_of(
    st.builds(said, _paths, st.sampled_from(["__eq__", "__ne__"]), _values | _lists),
    st.builds(said, _paths, st.just("one_of"), _lists),
    st.builds(said, _paths, st.sampled_from(["any", "all"]), _lists | st.just("running k:1")),
    st.builds(said, _paths, st.just("exists")),
    st.builds(said, _paths, st.sampled_from(["matches", "search"]), st.just("A|run|a"), st.just(2)),
    st.builds(said, _paths, st.just("test"), st.just(a)),
    st.builds(
        said,
        st.sampled_from([(), ("metadata",), ("tags",)]),
        st.just("fragment"),
        st.sampled_from([{"state": "running"}, {"a": "a"}]),
    ),
    st.just(Query().noop()),
)
_queries: st.SearchStrategy[QueryInstance] = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.builds(operator.and_, inner, inner),
        st.builds(operator.or_, inner, inner),
        st.builds(operator.invert, inner),
    ),
    max_leaves=6,
)


@given(_records, _queries)
def test_a_query_finds_the_same_with_an_index_and_without(
    records: list[Record], query: QueryInstance
) -> None:
    view = View()
    view.load(records)

    def meets(record: Record) -> bool:
        return query(Document(record))

    try:
        wanted = view.select(where=meets)
    except TypeError:
        reject()  # a question that makes no sense, such as whether a list is in a set
    assert view.select(where=meets, hint=hint_of(query)) == wanted


@given(_records, _queries)
def test_a_query_finds_what_plain_tinydb_finds_in_the_file(
    records: list[Record], query: QueryInstance
) -> None:
    with tinydb.TinyDB(storage=MemoryStorage) as db:
        for record in records:
            db.insert(msgspec.json.decode(msgspec.json.encode(record)))
        try:
            wanted = sorted(found["id"] for found in db.search(query))
        except TypeError:
            reject()
    assert sorted(record.id for record in records if query(Document(record))) == wanted


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        (where("state") == "running", Among("state", frozenset({"running"}))),
        (where("state") == State.RUNNING, Among("state", frozenset({"running"}))),
        (where("type").one_of(["vm", "hv"]), Among("type", frozenset({"vm", "hv"}))),
        (where("name") == "web1", Among("name", frozenset({"web1"}))),
        (where("id") == "x", Among("id", frozenset({"x"}))),
        (where("keys").any(["ip:1", "ip:2"]), Among("key", frozenset({"ip:1", "ip:2"}))),
        (where("keys").all(["ip:1"]), Among("key", frozenset({"ip:1"}))),
        (where("links").members.any(["x"]), Among("linked", frozenset({"x"}))),
        (where("tags").env == "prod", Among("tag", frozenset({"env=prod"}))),
        (where("tags").env == "", Among("tag", frozenset({"env"}))),
        (where("tags").env.exists(), Among("tag", frozenset({"env"}))),
        (where("tags").env.matches("p.*"), Among("tag", frozenset({"env"}))),
        (where("tags").env != "prod", Among("tag", frozenset({"env"}))),
        (
            (where("type") == "vm") & (where("metadata").rack == "b4"),
            Among("type", frozenset({"vm"})),
        ),
        (where("tenant") == None, None),  # noqa: E711  # a query, not a comparison
        (where("state") != "running", None),
        (~(where("state") == "running"), None),
        ((where("type") == "vm") | (where("metadata").rack == "b4"), None),
        (said(("keys",), "any", "ip:1"), None),
        (where("metadata").fragment({"state": "running"}), None),
        (where("name").map(str.upper) == "WEB1", None),
        (Query().noop(), None),
        (lambda record: record["state"] == "running", None),
    ],
)
def test_an_index_serves_where_one_can(query: Any, hint: object) -> None:
    assert hint_of(query) == hint


def test_conditions_join() -> None:
    one, two = Among("type", frozenset({"vm"})), Among("state", frozenset({"new"}))
    both = hint_of((where("type") == "vm") & (where("state") == "new"))
    assert isinstance(both, Every)
    assert {*both.parts} == {one, two}
    either = hint_of((where("type") == "vm") | (where("state") == "new"))
    assert isinstance(either, Either)
    assert {*either.parts} == {one, two}
    assert every([]) is None
    assert every([one]) == one


class Odd(str):
    """Text that says it equals anything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__


class Reversed(QueryInstance):
    """A query that is true where its structure says that it is not."""

    def __call__(self, value: Mapping[str, Any]) -> bool:
        return not super().__call__(value)


def test_what_only_looks_like_a_plain_comparison_gives_no_hint() -> None:
    assert hint_of(where("state") == Odd("running")) is None
    plain = where("state") == "running"
    assert hint_of(Reversed(plain._test, plain._hash)) is None
    strange = QueryInstance(lambda _record: True, ("==", 5, "running"))
    assert hint_of(strange) is None


def test_a_document_is_the_record_as_json_has_it() -> None:
    record = Record(
        id="a",
        name="web1",
        former=("h",),
        keys=("ip:1",),
        links={"x": ("a", "b")},
        intent=Intent(action="start", txid="t", since=1.0, owner=Holder(process=1, machine="m")),
    )
    document = Document(record)
    assert dict(document) == msgspec.json.decode(msgspec.json.encode(record))
    assert len(document) == len(dict(document))
    assert document.get("nothing") is None


async def test_an_index_spares_looking_at_all_the_others(cluster: vagoth.Cluster) -> None:
    for number in range(5):
        await cluster.new(f"web{number}", definition={"memory": 1}, keys=[f"asset:{number}"])
    looked_at = []

    def look(record: Mapping[str, Any]) -> bool:
        looked_at.append(record["name"])
        return True

    found = cluster.nodes(where("type") == "hv", look)
    assert [node.name for node in found] == ["hv1", "hv2", "hv3"]
    assert sorted(looked_at) == ["hv1", "hv2", "hv3"]
    [node] = cluster.nodes("web*", where("keys").any(["asset:3", "asset:9"]), state="new")
    assert node.name == "web3"
    assert [*cluster.nodes(where("name") == "nobody")] == []


def test_a_field_alone_is_no_condition() -> None:
    for query in (where("state"), Query()):
        with pytest.raises(InvalidInput, match="a comparison, such as"):
            hint_of(query)


def test_reading_queries_does_not_import_tinydb() -> None:
    code = "import sys, vagoth.query, vagoth.view; sys.exit('tinydb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
