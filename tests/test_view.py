"""The view finds what it holds, through every index, whatever was applied to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vagoth.errors import NodeNotFound
from vagoth.model import Holder, Intent, Record, RecordChange
from vagoth.view import View, is_glob, natural


def node(name: str, **fields: Any) -> Record:
    return Record(**{"id": f"id-{name}", "name": name, **fields})


@pytest.fixture
def view() -> View:
    view = View()
    view.load(
        [
            node("hv1", type="hv", state="up"),
            node("web10", parent="id-hv1", tags={"env": "prod", "old": ""}, keys=("ip:10",)),
            node("web2", parent="id-hv1", state="running", tags={"env": "test"}),
            node("db1", tenant="acme", links={"a": ("id-hv1", "id-web2"), "b": ("id-web2",)}),
        ]
    )
    return view


def names(records: list[Record]) -> list[str]:
    return [record.name for record in records]


def test_a_record_is_found_by_id_name_and_key(view: View) -> None:
    record = view.get("id-web10")
    assert record is not None
    assert view.by_name("web10") is view.by_key("ip:10") is record
    for word in ("web10", "id-web10", "ip:10"):
        assert view.find(word) is record
    assert view.by_name("id-web10") is view.by_key("web10") is view.get("web10") is None
    assert "id-web10" in view
    assert len(view) == 4
    assert sorted(record.name for record in view) == sorted(view.names())


def test_what_is_not_there_is_named_with_the_nearest_name(view: View) -> None:
    with pytest.raises(NodeNotFound) as caught:
        view.find("web20")
    assert caught.value.nearest in {"web2", "web10"}
    with pytest.raises(NodeNotFound) as caught:
        view.find("nothing like it")
    assert caught.value.nearest is None


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ({}, ["db1", "hv1", "web2", "web10"]),
        ({"glob": "web*"}, ["web2", "web10"]),
        ({"glob": "web?"}, ["web2"]),
        ({"glob": "[dh]*"}, ["db1", "hv1"]),
        ({"glob": "web2"}, ["web2"]),
        ({"glob": "WEB2"}, []),
        ({"glob": "nobody"}, []),
        ({"type": "vm"}, ["db1", "web2", "web10"]),
        ({"type": "vm", "state": "running"}, ["web2"]),
        ({"state": "nowhere"}, []),
        ({"parent": "id-hv1"}, ["web2", "web10"]),
        ({"parent": "id-hv1", "glob": "web1*"}, ["web10"]),
        ({"tenant": "acme"}, ["db1"]),
        ({"tags": {"env": None}}, ["web2", "web10"]),
        ({"tags": {"env": ""}}, ["web2", "web10"]),
        ({"tags": {"env": "prod"}}, ["web10"]),
        ({"tags": {"env": "prod", "old": None}}, ["web10"]),
        ({"tags": {"env": "test", "old": None}}, []),
        ({"key": "ip:10"}, ["web10"]),
        ({"key": "ip:11"}, []),
        ({"where": lambda record: "b" in record.name}, ["db1", "web2", "web10"]),
    ],
)
def test_a_selection_meets_every_condition_and_is_sorted(
    view: View, conditions: dict[str, Any], found: list[str]
) -> None:
    assert names(view.select(**conditions)) == found


def test_a_name_that_looks_like_a_pattern_is_first_of_all_a_name(view: View) -> None:
    view.apply(RecordChange(None, node("web[1]")))
    assert names(view.select("web[1]")) == ["web[1]"]
    assert names(view.select("web[12]*")) == ["web2", "web10"]


def test_relations_are_found_from_their_far_end(view: View) -> None:
    assert names(view.children("id-hv1")) == ["web2", "web10"]
    assert names(view.linking("id-web2")) == ["db1"]
    assert names(view.linking("id-hv1")) == ["db1"]
    assert view.children("nobody") == view.linking("nobody") == []
    assert view.name_of("id-hv1") == "hv1"
    assert view.name_of("nobody") == "nobody"
    assert view.name_of(None) is None


def test_indexes_list_and_count_their_values(view: View) -> None:
    assert view.values("tag") == ["env", "env=prod", "env=test", "old"]
    assert view.values("state") == ["new", "running", "up"]
    assert view.count("state", "new") == 2
    assert view.count("state", "gone") == 0


def test_intents_are_found_until_they_are_over(view: View) -> None:
    intent = Intent(action="start", txid="t", since=1.0, owner=Holder(process=1, machine="m"))
    web2 = view.find("web2")
    begun = node("web2", parent="id-hv1", intent=intent)
    view.apply(RecordChange(web2, begun))
    assert view.with_intent() == [begun]
    view.apply(RecordChange(begun, web2))
    assert view.with_intent() == []


def test_what_was_deleted_leaves_no_trace(view: View) -> None:
    for record in list(view):
        view.apply(RecordChange(record, None))
    assert len(view) == 0
    assert list(view.names()) == []
    for index in ("type", "state", "parent", "tenant", "tag", "linked", "intent"):
        assert view.values(index) == []
    assert view.by_key("ip:10") is None


def test_two_names_can_be_swapped_one_change_after_the_other(view: View) -> None:
    one = node("web2", id="id-web10", keys=("ip:2",))
    two = node("web10", id="id-web2", keys=("ip:10",))
    view.apply(RecordChange(view.find("web10"), one))
    view.apply(RecordChange(view.find("id-web2"), two))
    assert (view.by_name("web2"), view.by_name("web10")) == (one, two)
    assert (view.by_key("ip:2"), view.by_key("ip:10")) == (one, two)


def test_generations_tell_which_record_changed_its_life_last(view: View) -> None:
    before = view.generation
    view.apply(RecordChange(view.find("web2"), node("web2", metadata={"a": 1}, state="stopped")))
    view.apply(RecordChange(view.find("db1"), node("db1", metadata={"a": 1}, tenant="acme")))
    assert view.touched("id-web2") > before
    assert view.touched("id-db1") <= before
    view.apply(RecordChange(view.find("web2"), None))
    assert view.touched("id-web2") == 0
    view.load([node("x")])
    assert view.touched("id-x") > before


def test_numbers_in_names_sort_as_numbers() -> None:
    given = ["web10", "web2", "a", "web", "10", "9", "web2b", "web02", "é1", "٣"]
    assert sorted(given, key=natural)[:2] == ["٣", "9"]
    assert [name for name in sorted(given, key=natural) if name.startswith("web")] == [
        "web",
        "web02",
        "web2",
        "web2b",
        "web10",
    ]


@given(st.lists(st.text(max_size=8)))
def test_any_names_can_be_sorted_in_one_way_only(given: list[str]) -> None:
    backwards = given[::-1]
    assert sorted(backwards, key=natural) == sorted(given, key=natural)


def test_patterns_are_told_from_names() -> None:
    assert [text for text in ("web*", "w?b", "[ab]", "web", "web]", "a.b") if is_glob(text)] == [
        "web*",
        "w?b",
        "[ab]",
    ]


_record = st.builds(
    lambda number, name, type, state, parent, tenant, tags, keys, links: Record(
        id=f"i{number}",
        name=name,
        type=type,
        state=state,
        parent=parent,
        tenant=tenant,
        tags=tags,
        keys=tuple(sorted(keys)),
        links=links,
    ),
    st.integers(0, 5),
    st.sampled_from("abcdef"),
    st.sampled_from(["vm", "hv"]),
    st.sampled_from(["new", "running"]),
    st.none() | st.sampled_from(["i0", "i1"]),
    st.none() | st.sampled_from(["t", "u"]),
    st.dictionaries(st.sampled_from("xy"), st.sampled_from(["", "1"])),
    st.sets(st.sampled_from(["k:1", "k:2", "k:3"])),
    st.dictionaries(st.sampled_from("lm"), st.lists(st.sampled_from(["i0", "i1"])).map(tuple)),
)


@given(st.lists(_record | st.integers(0, 5).map(lambda number: f"i{number}"), max_size=30))
def test_a_view_that_was_changed_equals_one_that_was_loaded(steps: list[Record | str]) -> None:
    """No index may remember what the records have forgotten, nor miss what they have learnt."""
    changed = View()
    for step in steps:
        node_id = step if isinstance(step, str) else step.id
        before = changed.get(node_id)
        if isinstance(step, str):
            if before is not None:
                changed.apply(RecordChange(before, None))
            continue
        unique = {key for record in changed if record.id != node_id for key in record.keys}
        if {*step.keys} & unique or any(
            record.name == step.name and record.id != node_id for record in changed
        ):
            continue
        changed.apply(RecordChange(before, step))
    loaded = View()
    loaded.load(list(changed))
    assert set(changed.names()) == set(loaded.names())
    for index in ("type", "state", "parent", "tenant", "tag", "linked", "intent"):
        assert changed.values(index) == loaded.values(index)
        for value in loaded.values(index):
            assert changed.count(index, value) == loaded.count(index, value)
    for record in loaded:
        assert changed.by_name(record.name) is record
        assert all(changed.by_key(key) is record for key in record.keys)
        assert changed.children(record.id) == loaded.children(record.id)
        assert changed.linking(record.id) == loaded.linking(record.id)
