"""What may be called how, and what records promise about themselves."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vagoth.errors import InvalidInput
from vagoth.model import (
    Delete,
    Holder,
    Put,
    ReadOnlyDict,
    Record,
    RecordChange,
    check_id,
    check_key,
    check_name,
    check_text,
    digest,
    merge_patch,
    new_id,
    new_txid,
    read_only,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
mappings = st.dictionaries(st.text(max_size=3), plain, max_size=5)


@pytest.mark.parametrize(
    "name", ["a", "web1", "x" * 63, "WEB-1.example_com", "9", "é", ".", "a[1]"]
)
def test_good_names_are_taken_as_they_are(name: str) -> None:
    assert check_name(name) == check_id(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "x" * 64, "-x", "a/b", "a:b", "a*", "a?", "a b", "a\tb", "a\n", "\x7f", "\x85"),
        *("\ud800", "\u2003", 5, None, ["a"]),
    ],
)
def test_bad_names_are_refused_with_what_was_expected(name: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_name(name, field="nodes[0].name")
    assert caught.value.field == "nodes[0].name"
    assert caught.value.value == name
    assert "63 characters" in str(caught.value)
    with pytest.raises(InvalidInput) as caught:
        check_id(name)
    assert caught.value.field == "id"


@pytest.mark.parametrize("key", ["ip:10.0.0.1", "mac:52:54:00:00:00:01", "a:b", "ip:::1", "é:ü"])
def test_good_keys_are_taken_as_they_are(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    [
        *("", "x", ":", "x:", ":x", "x:a b", "x:a*", "x:a/b", "x:a?", "x:\x00", "x:\ud800"),
        *("x:" * 200, "x:\u2028", 7, None),
    ],
)
def test_bad_keys_are_refused(key: Any) -> None:
    with pytest.raises(InvalidInput):
        check_key(key)


def test_texts_are_one_line_of_bounded_length() -> None:
    assert check_text("Zoë & söhne", field="tenant") == "Zoë & söhne"
    assert check_text("", field="tag", empty=True) == ""
    for text in ("", "a\nb", "\x1b[31m", "x" * 256, "\u2029", "\ud800", 5):
        with pytest.raises(InvalidInput):
            check_text(text, field="tenant")  # type: ignore[arg-type]


def test_ids_are_names_and_never_the_same_twice() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == len({new_txid() for _ in range(1000)}) == 1000
    assert all(check_id(each) for each in ids)


def test_records_are_frozen_and_come_back_from_json_as_they_were() -> None:
    record = Record(
        id="a",
        name="web1",
        keys=("ip:1",),
        former=("h1",),
        links={"m": ("b",)},
        definition={"a": [1, 2.5, None]},
    )
    with pytest.raises(AttributeError):
        record.name = "x"  # type: ignore[misc]
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record
    assert msgspec.convert(msgspec.to_builtins(record), Record) == record


def test_a_change_says_which_fields_differ() -> None:
    before = Record(id="a", name="x", revision="1", updated=1.0)
    after = Record(id="a", name="y", revision="2", updated=2.0, tags={"a": "b"})
    assert set(RecordChange(before, after).fields()) == {"name", "tags"}
    assert set(RecordChange(before, before).fields()) == set()
    assert {"id", "name"} <= set(RecordChange(None, after).fields())
    assert RecordChange(None, after).record is after
    assert RecordChange(before, None).record is before
    assert RecordChange(before, after).record is after


def test_changes_compare_by_what_they_want() -> None:
    assert Put(Record(id="a", name="x")) == Put(Record(id="a", name="x"))
    assert Delete("a") != Delete("b")


def test_a_holder_reads_as_a_sentence() -> None:
    holder = Holder(process=4711, machine="box", user="alice", txid="abc")
    assert str(holder) == "process 4711 on box (alice), transaction abc"
    assert str(Holder(process=1, machine="box")) == "process 1 on box"


def test_the_digest_follows_name_and_definition_alone() -> None:
    record = Record(id="a", name="x", definition={"a": 1, "b": [2]})
    same = Record(id="b", name="x", definition={"b": [2], "a": 1}, state="running")
    assert digest(record) == digest(same)
    assert digest(record) != digest(msgspec.structs.replace(record, name="y"))
    assert digest(record) != digest(msgspec.structs.replace(record, definition={"a": 1}))


@given(mappings)
def test_what_is_read_only_reads_like_the_original(value: dict[str, Any]) -> None:
    frozen = read_only(value)
    assert frozen == value
    assert json.loads(json.dumps(frozen)) == value
    assert msgspec.json.encode(frozen) == msgspec.json.encode(value)


def test_what_is_read_only_refuses_every_way_of_changing_it() -> None:
    frozen = read_only({"a": [1, {"b": 2}], "t": (1, 2)})
    inner = frozen["a"]
    attempts: list[Callable[[], object]] = [
        lambda: frozen.__setitem__("a", 1),
        lambda: frozen.__delitem__("a"),
        lambda: frozen.__ior__({"x": 1}),
        lambda: frozen.update(x=1),
        lambda: frozen.setdefault("x", 1),
        lambda: frozen.setdefault("a", 1),
        lambda: frozen.pop("a"),
        lambda: frozen.popitem(),
        lambda: frozen.clear(),
        lambda: inner.__setitem__(0, 1),
        lambda: inner.__delitem__(0),
        lambda: inner.__iadd__([1]),
        lambda: inner.__imul__(2),
        lambda: inner.append(1),
        lambda: inner.extend([1]),
        lambda: inner.insert(0, 1),
        lambda: inner.remove(1),
        lambda: inner.pop(),
        lambda: inner.clear(),
        lambda: inner.sort(),
        lambda: inner.reverse(),
        lambda: inner[1].update(b=3),
    ]
    for attempt in attempts:
        with pytest.raises(TypeError, match="read-only"):
            attempt()
    assert frozen == {"a": [1, {"b": 2}], "t": [1, 2]}


def test_what_is_read_only_can_be_copied_to_be_changed() -> None:
    frozen = read_only({"a": [1]})
    assert isinstance(frozen, ReadOnlyDict)
    changed = dict(frozen)
    changed["a"] = 2
    assert frozen == {"a": [1]}


@pytest.mark.parametrize(
    ("target", "patch", "merged"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": 5}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ],
)
def test_merging_follows_the_rfc(target: Any, patch: Any, merged: Any) -> None:
    """The examples of RFC 7396, those whose target is a mapping."""
    before = copy.deepcopy(target)
    assert merge_patch(target, patch) == merged
    assert target == before


@given(mappings, mappings)
def test_merging_twice_is_merging_once(target: dict[str, Any], patch: dict[str, Any]) -> None:
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))]
)
def test_a_copy_of_what_is_read_only_is_plain_and_the_takers_own(
    copied: Callable[[Any], Any],
) -> None:
    shown = read_only({"nics": [{"network": "lan"}]})
    own = copied(shown)
    assert own == shown
    own["memory"] = 1
    assert "memory" not in shown
