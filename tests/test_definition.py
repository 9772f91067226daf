"""Definitions are read, checked and changed as their users mean them, or refused by field."""

from __future__ import annotations

import math
import uuid as uuidlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vagoth.definition import (
    MIB,
    Boot,
    BootFrom,
    Disk,
    DiskBus,
    Kind,
    Nic,
    VMDefinition,
    assigned,
    choices,
    convert,
    fields_at,
    is_unicast_mac,
    parse_size,
    read_text,
    split_path,
    types_at,
    value_at,
)
from vagoth.drivers.sim import SimHostDefinition
from vagoth.errors import InvalidInput

UNITS = {"b": 1, "k": 1024, "KiB": 1024, "m": MIB, "MiB": MIB, "GiB": 1024**3, "TIB": 1024**4}
SURROGATE = "\udcff"

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.text(alphabet="abcxyz_-0", min_size=1, max_size=4)
plain = st.recursive(
    st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=10,
)


class Mapped(msgspec.Struct, forbid_unknown_fields=True):
    """A definition with what those of built-in types do not have: mappings."""

    numbers: dict[str, int] = {}
    nics: dict[str, Nic] = {}
    deep: dict[str, dict[str, int]] = {}
    kinds: dict[str, Kind] = {}
    ratio: float | None = None
    is_on: bool = False
    free: Any = None


def refused(wanted: type, **definition: object) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        convert(definition, wanted)
    return caught.value


def refusal(act: Callable[[], object]) -> InvalidInput | None:
    """How ``act`` was refused, if it was."""
    try:
        act()
    except InvalidInput as error:
        return error
    return None


# --- sizes ----------------------------------------------------------------------------


@given(st.integers(1, 1024**3 - 1))
def test_a_number_is_a_size_in_mib(number: int) -> None:
    assert parse_size(number) == parse_size(str(number)) == number * MIB


@given(st.integers(1, 1000), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " ", "\t"]))
def test_a_size_has_a_binary_unit(number: int, unit: str, blank: str) -> None:
    wanted = number * UNITS[unit]
    for text in (unit, unit.lower(), unit.upper()):
        assert parse_size(f"{number}{blank}{text}") == wanted


@given(st.integers(1, 1024**5 - 1))
def test_bytes_are_counted_exactly(number: int) -> None:
    if number < 10**15:
        assert parse_size(f"{number}B") == number


def test_a_size_may_have_a_fraction() -> None:
    assert parse_size("1.5GiB") == 1536 * MIB
    assert parse_size(" 0.5 m ") == MIB // 2


@given(st.text() | st.booleans() | st.integers() | st.floats())
@example("1e3MiB")
@example("٣MiB")
@example("nan")
@example("")
@example(10**5000)
@example("9" * 5000)
@example("1023.9999999999999TiB")
def test_a_size_is_possible_or_refused(value: Any) -> None:
    try:
        size = parse_size(value)
    except ValueError:
        return
    assert 1 <= size < 1024**5


@pytest.mark.parametrize(
    "value",
    [0, -1, "0", "0.1b", "-5", "5 parsecs", "5MB", "1 2", "GiB", True, "1024TiB", "1..5", "1_0"],
)
def test_what_is_no_size_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="a size"):
        parse_size(value)


# --- checks ---------------------------------------------------------------------------


def test_a_definition_needs_only_memory() -> None:
    vm = convert({"memory": "512MiB"}, VMDefinition)
    assert vm.memory_bytes == 512 * MIB
    assert (vm.vcpus, vm.kind, vm.boot, vm.disks, vm.nics) == (1, Kind.KVM, BootFrom.DISK, (), ())


def test_a_definition_is_read_whole() -> None:
    uuid = str(uuidlib.uuid4())
    vm = convert(
        {
            "memory": 64,
            "vcpus": 2,
            "kind": "qemu",
            "uuid": uuid,
            "boot": {"kernel": "/k", "initrd": "/i", "cmdline": "console=ttyS0"},
            "disks": [{"pool": "p", "volume": "v", "bus": "sata"}, {"path": "/dev/sdb"}],
            "nics": [{"network": "lan"}, {"bridge": "br0", "mac": "52:54:00:12:34:56"}],
            "xml": "<domain/>\n",
        },
        VMDefinition,
    )
    assert vm.boot == Boot("/k", "/i", "console=ttyS0")
    assert vm.disks == (Disk(pool="p", volume="v", bus=DiskBus.SATA), Disk(path="/dev/sdb"))
    assert vm.nics == (Nic(network="lan"), Nic(bridge="br0", mac="52:54:00:12:34:56"))
    assert (vm.uuid, vm.kind, vm.memory_bytes) == (uuid, Kind.QEMU, 64 * MIB)


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"memory": "lots"}, "memory", "a size such as 512MiB"),
        ({"memory": None}, "memory", "a whole number or text"),
        ({"memory": "1000b"}, "memory", "at least 1MiB"),
        ({"vcpus": 0}, "vcpus", ">= 1"),
        ({"vcpus": "two"}, "vcpus", "a whole number"),
        ({"kind": "xen"}, "kind", "one of kvm, qemu, lxc"),
        ({"boot": "floppy"}, "boot", "one of disk, network"),
        ({"boot": {"kernel": "vmlinuz"}}, "boot.kernel", "an absolute path"),
        ({"boot": {"kernel": "/k", "cmdline": "a\nb"}}, "boot.cmdline", "one line"),
        ({"boot": {}}, "boot.kernel", "left out"),
        ({"disks": {}}, "disks", "a list"),
        ({"disks": [{"path": "/a"}, {"path": "b"}]}, "disks[1].path", "an absolute path"),
        ({"disks": [{"pool": "p"}]}, "disks[0].path", "pool and volume"),
        ({"disks": [{"path": "/a", "format": "../raw"}]}, "disks[0].format", "raw or qcow2"),
        ({"disks": [{"path": "/a", "bus": "usb"}]}, "disks[0].bus", "virtio, scsi, sata, ide"),
        ({"nics": [{}]}, "nics[0].network", "or else bridge"),
        ({"nics": [{"network": "n", "bridge": "b"}]}, "nics[0].network", "not both"),
        ({"nics": [{"network": ""}]}, "nics[0].network", "one line"),
        ({"nics": [{"network": "n", "mac": "01:00:5e:00:00:01"}]}, "nics[0].mac", "one card"),
        ({"nics": [{"network": "n", "model": "e1000'/>"}]}, "nics[0].model", "virtio or e1000"),
        ({"uuid": "1234"}, "uuid", "a UUID"),
        ({"uuid": "{" + str(uuidlib.uuid4()).upper() + "}"}, "uuid", "its usual form"),
        ({"xml": "<a>\x00</a>"}, "xml", "without control characters"),
        ({"xml": SURROGATE}, "xml", "without control characters"),
    ],
)
def test_what_is_wrong_is_named_with_its_field(
    changes: dict[str, Any], field: str, expected: str
) -> None:
    definition = {"memory": 64, **changes}
    error = refused(VMDefinition, **definition)
    assert error.field == field
    assert expected in error.expected
    assert error.value == value_at(definition, field)


def test_a_mac_stands_once() -> None:
    nics = [{"network": "a", "mac": f"52:54:00:aa:{end}"} for end in ("bb:cc", "BB:CC")]
    assert refused(VMDefinition, memory=64, nics=nics).field == "nics"


def test_a_misspelt_field_is_named_with_the_one_that_was_meant() -> None:
    error = refused(VMDefinition, memory=64, vcpu=2)
    assert (error.field, error.value) == ("vcpu", 2)
    assert error.cure == "did you mean vcpus?"
    error = refused(VMDefinition, memory=64, nics=[{"nework": "lan"}])
    assert (error.field, error.value) == ("nics[0].nework", "lan")
    assert error.cure == "did you mean network?"
    assert "memory" in refused(VMDefinition, memory=64, zzzzzz=1).cure


def test_a_missing_field_is_said_to_be_missing() -> None:
    assert str(refused(VMDefinition)) == "memory is missing"


def test_a_prefix_stands_before_the_field() -> None:
    with pytest.raises(InvalidInput) as caught:
        convert({"memory": "lots"}, VMDefinition, prefix="definition.")
    assert caught.value.field == "definition.memory"


@pytest.mark.parametrize(
    ("definition", "field", "value"),
    [
        ({"numbers": {"ok": 1, "bad": "x"}}, "numbers.bad", "x"),
        # A field after it is wrong, too, and no fault of the keys that are right.
        ({"numbers": {"ok": 1, "bad": "x"}, "kinds": {"z": "xen"}}, "numbers.bad", "x"),
        ({"numbers": {"ok": 1, "bad": "x"}, "kinds": {"z": SURROGATE}}, "numbers.bad", "x"),
        ({"nics": {"a": {"network": 5}}}, "nics.a.network", 5),
        ({"nics": {"a": {"network": "n", "mac": "x"}}}, "nics.a.mac", "x"),
        ({"nics": {"a": {"nework": "lan"}}}, "nics.a.nework", "lan"),
        ({"deep": {"a": {"b": 1, "c": "x"}}}, "deep.a.c", "x"),
        ({"kinds": {"a": "xen"}}, "kinds.a", "xen"),
        # What cannot stand in a path is not put into one.
        ({"numbers": {"a.b": "x"}}, "numbers[...]", {"a.b": "x"}),
        ({"numbers": {"": "x"}}, "numbers[...]", {"": "x"}),
        ({"numbers": {"a\x1b[2J": "x"}}, "numbers[...]", {"a\x1b[2J": "x"}),
        ({"numbers": {SURROGATE: "x"}}, "numbers[...]", {SURROGATE: "x"}),
    ],
)
def test_what_is_wrong_below_a_key_of_a_mapping_is_named(
    definition: dict[str, Any], field: str, value: Any
) -> None:
    error = refused(Mapped, **definition)
    assert (error.field, error.value) == (field, value)


def test_what_a_key_s_value_may_be_is_said() -> None:
    assert refused(Mapped, numbers={1: 1}).expected == "text"
    assert refused(Mapped, nics={"a": {"nework": "lan"}}).cure == "did you mean network?"
    assert refused(Mapped, kinds={"a": "xen"}).expected == "one of kvm, qemu, lxc"
    assert refused(Mapped, kinds={"a.b": "xen"}).expected == "one of kvm, qemu, lxc"


def test_a_plain_mapping_may_be_what_is_wanted() -> None:
    with pytest.raises(InvalidInput) as caught:
        convert({"a": 1, "b": "x"}, dict[str, int])
    assert (caught.value.field, caught.value.value) == ("b", "x")


@pytest.mark.parametrize("name", ["a[", "a.b", "", "]", "a\nb", "a` - at `$.b", "[...]", "ü"])
def test_an_unknown_field_may_be_called_anything(name: str) -> None:
    error = refused(Mapped, **{name: 5})
    assert "\n" not in str(error)


def test_what_is_no_utf_8_is_refused() -> None:
    assert refused(VMDefinition, memory=64, kind=SURROGATE).value == SURROGATE
    assert refused(VMDefinition, memory=64, **{SURROGATE: 1}).value == SURROGATE
    assert refused(VMDefinition, memory=64, nics=[{"network": SURROGATE}]).field


@given(st.dictionaries(st.text() | st.sampled_from(VMDefinition.__struct_fields__), anything))
def test_a_definition_is_read_or_refused_by_field(definition: dict[str, Any]) -> None:
    for wanted in (VMDefinition, SimHostDefinition, Mapped):
        error = refusal(partial(convert, definition, wanted))
        assert error is None or (error.field and error.expected)


@given(anything)
def test_what_is_no_mapping_is_refused(definition: Any) -> None:
    if not isinstance(definition, Mapping):
        with pytest.raises(InvalidInput) as caught:
            convert(definition, VMDefinition)
        assert caught.value.field == "definition"


@given(
    st.lists(st.integers(0, 255), min_size=6, max_size=6),
    st.sampled_from([str.upper, str.lower]),
)
def test_a_mac_is_one_card_s_unless_its_group_bit_is_set(parts: list[int], case: Any) -> None:
    text = case(":".join(f"{part:02x}" for part in parts))
    assert is_unicast_mac(text) == (parts[0] % 2 == 0)


@given(st.text())
@example("52-54-00-12-34-56")
@example("52:54:00:12:34:56\n")
def test_other_text_is_no_mac(text: str) -> None:
    assert not is_unicast_mac(text) or len(text) == 17


# --- paths ----------------------------------------------------------------------------


def joined(parts: list[str | int]) -> str:
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")


paths = st.lists(names | st.integers(0, 3), max_size=4).map(lambda tail: ["a", *tail])


@given(paths)
def test_a_path_is_taken_apart(parts: list[str | int]) -> None:
    assert split_path(joined(parts)) == parts


@pytest.mark.parametrize(
    "path",
    [".", "a.", ".a", "a..b", "[0]", "a[", "a[]", "a[x]", "a]b", "a[-1]", "a[1" + "0" * 5000],
)
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput):
        split_path(path)
    with pytest.raises(InvalidInput):
        assigned({}, path, 1)


@given(plain, paths, plain)
def test_what_was_assigned_is_there_and_nothing_else_changed(
    definition: Any, parts: list[str | int], value: Any
) -> None:
    path = joined(parts)
    before = msgspec.json.encode(definition)
    error = refusal(lambda: assigned(definition, path, value))
    if error is not None:
        assert error.field == path
    else:
        changed = assigned(definition, path, value)
        assert value_at(changed, path) == value
        assert assigned(changed, path, value) == changed
        if isinstance(definition, dict):
            assert {k: v for k, v in changed.items() if k != "a"} == {
                k: v for k, v in definition.items() if k != "a"
            }
    assert msgspec.json.encode(definition) == before


@given(st.dictionaries(names | st.just("a"), plain), paths)
def test_removing_adds_nothing(definition: dict[str, Any], parts: list[str | int]) -> None:
    path = joined(parts)
    try:
        changed = assigned(definition, path, None)
    except InvalidInput:
        return
    assert _leaves(changed) <= _leaves(definition)
    if value_at(definition, path) is None and value_at(definition, joined(parts[:-1])):
        assert _leaves(changed) == _leaves(definition)


def _leaves(value: Any) -> int:
    if isinstance(value, dict):
        return sum(1 + _leaves(item) for item in value.values())
    if isinstance(value, list):
        return sum(1 + _leaves(item) for item in value)
    return 0


def test_nothing_removes_what_is_there() -> None:
    before = {"memory": 64, "boot": {"kernel": "/k"}, "nics": [{"network": "a"}, {"network": "b"}]}
    assert assigned(before, "nics[0]", None)["nics"] == [{"network": "b"}]
    assert assigned(before, "nics[0].network", None)["nics"][0] == {}
    # What holds nothing any more goes as well.
    assert "boot" not in assigned(before, "boot.kernel", None)
    assert assigned(before, "vcpus", None) == before


def test_a_list_grows_at_its_end_only() -> None:
    assert assigned({}, "nics[0].network", "lan") == {"nics": [{"network": "lan"}]}
    with pytest.raises(InvalidInput, match="long enough"):
        assigned({}, "nics[1].network", "lan")


def test_a_path_leads_through_mappings_and_lists_only() -> None:
    for path in ("memory.size", "memory[0]", "nics.first", "boot[0]"):
        with pytest.raises(InvalidInput):
            assigned({"memory": 64, "nics": [], "boot": {}}, path, 1)


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(InvalidInput):
        assigned({}, "", 1)


# --- text -----------------------------------------------------------------------------


@given(st.text())
def test_where_text_is_meant_text_stays_what_it_is(text: str) -> None:
    for path in ("uuid", "xml", "boot.kernel", "nics[0].network", "kind"):
        assert read_text(VMDefinition, path, text) == text


@given(st.integers(-(10**12), 10**12))
def test_where_a_number_is_meant_it_is_read(number: int) -> None:
    assert read_text(VMDefinition, "vcpus", str(number)) == number
    assert read_text(VMDefinition, "memory", str(number)) == number
    assert read_text(SimHostDefinition, "seed", f"{number:+}") == number


@given(st.floats(-1e9, 1e9, allow_nan=False))
def test_where_a_fraction_is_meant_it_is_read(number: float) -> None:
    read = read_text(SimHostDefinition, "latency_s", f"{number:.6f}")
    assert math.isclose(read, number, abs_tol=1e-6)
    assert isinstance(read, float)


def test_true_and_false_are_read_where_they_are_meant() -> None:
    assert read_text(SimHostDefinition, "deaf", "True") is True
    assert read_text(SimHostDefinition, "deaf", "false") is False
    assert read_text(SimHostDefinition, "deaf", "yes") == "yes"
    assert read_text(VMDefinition, "xml", "true") == "true"


def test_a_list_or_a_mapping_is_read_as_json() -> None:
    text = '[{"network": "lan"}]'
    assert read_text(VMDefinition, "nics", text) == [{"network": "lan"}]
    assert read_text(Mapped, "numbers", '{"a": 1}') == {"a": 1}
    assert read_text(Mapped, "numbers.a", "7") == 7
    for bad in ("lan", "[", "[" * 100_000):
        with pytest.raises(InvalidInput, match="is not JSON"):
            read_text(VMDefinition, "nics", bad)


@given(plain)
def test_where_nothing_is_known_json_is_read_and_other_text_stays(value: Any) -> None:
    text = msgspec.json.encode(value).decode()
    for wanted, path in ((None, "a"), (VMDefinition, "nosuch.field"), (Mapped, "free")):
        assert read_text(wanted, path, text) == value
        assert read_text(wanted, path, "{" + text) == "{" + text


@given(st.text(), st.sampled_from([*VMDefinition.__struct_fields__, "nics[0].mac", "zz.y"]))
@example("9" * 5000, "memory")
@example("9" * 5000, "vcpus")
@example("[" * 100_000, "zz")
@example("1e999", "zz")
def test_any_text_is_read_or_refused(text: str, path: str) -> None:
    def read() -> None:
        convert({"memory": 64, path: read_text(VMDefinition, path, text)}, VMDefinition)

    error = refusal(read)
    assert error is None or error.field


def test_text_that_is_no_utf_8_is_refused() -> None:
    for path in ("memory", "xml", "nics", "zz"):
        with pytest.raises(InvalidInput) as caught:
            read_text(VMDefinition, path, SURROGATE)
        assert caught.value.field == path


# --- what a type says of its fields ---------------------------------------------------


def test_the_fields_below_a_path_are_known() -> None:
    assert list(fields_at(VMDefinition)) == list(VMDefinition.__struct_fields__)
    assert set(fields_at(VMDefinition, "nics[3]")) == {"network", "bridge", "mac", "model"}
    assert set(fields_at(VMDefinition, "boot")) == {"kernel", "initrd", "cmdline"}
    assert fields_at(VMDefinition, "memory") == fields_at(None) == {}
    assert set(fields_at(Mapped, "nics.any")) == set(fields_at(VMDefinition, "nics[0]"))


def test_the_choices_of_a_field_are_known() -> None:
    assert choices(VMDefinition, "kind") == ["kvm", "qemu", "lxc"]
    assert choices(VMDefinition, "boot") == ["disk", "network"]
    assert choices(VMDefinition, "disks[0].bus") == ["virtio", "scsi", "sata", "ide"]
    assert choices(VMDefinition, "memory") == choices(VMDefinition, "no.such") == []
    assert choices(None, "kind") == []


def test_the_types_of_a_field_are_told_apart() -> None:
    assert types_at(VMDefinition, "memory") == [int, str]
    assert types_at(VMDefinition, "vcpus") == [int]
    assert types_at(VMDefinition, "vcpus[0]") == types_at(VMDefinition, "vcpus.x") == []
    assert types_at(Annotated[int, "bytes"], "") == [int]
    assert types_at(Mapped, "free") == []
