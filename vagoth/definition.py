"""Definitions: what a node should be, typed, checked, and read from text.

A definition is stored as the dict its user gave; these types say what may stand in it. All
checks raise :class:`~vagoth.errors.InvalidInput` with the dotted path of the field.
"""

from __future__ import annotations

import re
import types
import typing
import uuid as uuidlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import msgspec

from vagoth.errors import InvalidInput, nearest, shown

MIB = 1024**2
_UNITS = {"": MIB, "b": 1, "kib": 1024, "mib": MIB, "gib": 1024**3, "tib": 1024**4}
_UNITS |= {"k": 1024, "m": MIB, "g": 1024**3, "t": 1024**4}
_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([a-zA-Z]*)\s*")
_SIZE_LIMIT = 1024**5
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
# What XML 1.0 cannot hold, and DEL.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_PROBLEM = re.compile(r"(?P<text>.*?)(?: - at `(?:key` in `)?\$(?P<path>[^`]*)`)?", re.DOTALL)

_PART = r"[^.\[\]]+(\[[0-9]{1,9}\])*"
_PATH = re.compile(rf"{_PART}(\.{_PART})*")
_KEY = re.compile(r"[\w@+-]+")

T = TypeVar("T")


def parse_size(value: int | str) -> int:
    """Bytes in ``value``: a number of MiB, or text with a binary unit (``"1.5 GiB"``, ``"512M"``).

    :raises ValueError: it is neither, or not above zero, or more than any host has
    """
    match = _SIZE.fullmatch(str(value)) if not isinstance(value, bool) else None
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError("a size such as 512MiB or 2GiB, or a number of MiB")
    size = int(float(match[1]) * unit)
    if not 1 <= size < _SIZE_LIMIT:
        raise ValueError("a size above zero and below a pebibyte, such as 512MiB")
    return size


class Kind(StrEnum):
    """What runs the guest: hardware virtualisation, emulation, or a container."""

    KVM = "kvm"
    QEMU = "qemu"
    LXC = "lxc"


class Boot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Boot a kernel from the host's file system, instead of what is on a disk."""

    kernel: str
    initrd: str | None = None
    cmdline: str | None = None

    def __post_init__(self) -> None:
        for field in ("kernel", "initrd"):
            path = getattr(self, field)
            if path is not None and not path.startswith("/"):
                raise ValueError(f"{field}: an absolute path on the host")
        _check_text(self, "kernel", "initrd", "cmdline")


class BootFrom(StrEnum):
    """Boot from the first disk, or from the network."""

    DISK = "disk"
    NETWORK = "network"


class DiskBus(StrEnum):
    """How the guest sees a disk."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"
    IDE = "ide"


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk that is there: a volume in a pool, or a file or device by its path on the host."""

    pool: str | None = None
    volume: str | None = None
    path: str | None = None
    format: str = "raw"
    bus: DiskBus = DiskBus.VIRTIO
    readonly: bool = False

    def __post_init__(self) -> None:
        if (self.path is None) == (self.volume is None) or (self.pool is None) != (
            self.volume is None
        ):
            raise ValueError("path: left out, or else pool and volume are")
        if self.path is not None and not self.path.startswith("/"):
            raise ValueError("path: an absolute path on the host")
        if not re.fullmatch(r"[a-z0-9]+", self.format):
            raise ValueError("format: one such as raw or qcow2")
        _check_text(self, "pool", "volume", "path")


class Nic(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network card on one of libvirt's networks, or on a bridge of the host."""

    network: str | None = None
    bridge: str | None = None
    mac: str | None = None
    model: str = "virtio"

    def __post_init__(self) -> None:
        if (self.network is None) == (self.bridge is None):
            raise ValueError("network: there, or else bridge is (not both)")
        if self.mac is not None and not is_unicast_mac(self.mac):
            raise ValueError("mac: a MAC of one card, such as 52:54:00:12:34:56")
        if not re.fullmatch(r"[a-z0-9-]+", self.model):
            raise ValueError("model: one such as virtio or e1000")
        _check_text(self, "network", "bridge")


class VMDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a virtual machine should be.

    ``memory`` is in MiB, or text with a unit; ``kind`` defaults to ``kvm``; ``xml`` is a
    fragment laid over the generated XML, the way out for all that is not modelled here.
    """

    memory: int | str
    vcpus: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1
    kind: Kind = Kind.KVM
    uuid: str | None = None
    boot: Boot | BootFrom = BootFrom.DISK
    disks: tuple[Disk, ...] = ()
    nics: tuple[Nic, ...] = ()
    xml: str | None = None

    def __post_init__(self) -> None:
        try:
            too_small = parse_size(self.memory) < MIB
        except ValueError as error:
            raise ValueError(f"memory: {error}") from None
        if too_small:
            raise ValueError("memory: a size of at least 1MiB")
        if self.uuid is not None:
            try:
                canonical = str(uuidlib.UUID(self.uuid))
            except ValueError:
                raise ValueError("uuid: a UUID") from None
            if canonical != self.uuid:
                raise ValueError(f"uuid: a UUID in its usual form, {canonical}")
        if self.xml is not None and _CONTROL.search(self.xml):
            raise ValueError("xml: text without control characters")
        macs = [nic.mac.lower() for nic in self.nics if nic.mac is not None]
        if len(macs) != len(set(macs)):
            raise ValueError("nics: a different mac for each")

    @property
    def memory_bytes(self) -> int:
        """The memory the guest is given."""
        return parse_size(self.memory)


def is_unicast_mac(text: str) -> bool:
    """Whether ``text`` is a MAC that one network card may have (not a group's)."""
    return bool(_MAC.fullmatch(text)) and not int(text[:2], 16) & 1


def _check_text(struct: msgspec.Struct, *fields: str) -> None:
    for field in fields:
        value = getattr(struct, field)
        if value is not None and (not value or _CONTROL.search(value) or "\n" in value):
            raise ValueError(f"{field}: one line of text without control characters")


def convert(definition: Mapping[str, Any], wanted: type[T], *, prefix: str = "") -> T:
    """The definition as an object of its type.

    :raises InvalidInput: names the field (below ``prefix``), its value and what was expected
    """
    try:
        return msgspec.convert(definition, wanted)
    except msgspec.ValidationError as error:
        raise _explained(definition, wanted, str(error), prefix) from None
    except UnicodeEncodeError as error:
        # A lone surrogate, which msgspec meets before it knows the field.
        raise InvalidInput(prefix + "definition", error.object, "text in UTF-8") from None


def _explained(
    definition: Mapping[str, Any], wanted: type, problem: str, prefix: str
) -> InvalidInput:
    match = _PROBLEM.fullmatch(problem)
    assert match is not None
    path, text = (match["path"] or "").lstrip("."), match["text"]
    while "[...]" in path:
        found = _with_key(definition, wanted, path, problem)
        if found is None:
            break
        path = found
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text, re.DOTALL)
    missing = re.fullmatch(r"Object missing required field `(.*)`", text)
    # The checks in __post_init__ begin with the field that they are about.
    checked = re.fullmatch(r"(\w+): (.*)", text, re.DOTALL)
    named = unknown or missing or checked
    field = ".".join(part for part in (path, named[1] if named else "") if part)
    value = _offending(definition, path, named[1] if named else None)
    # For the types one key of a mapping is as good as another.
    any_path, any_field = (p.replace("[...]", ".any").lstrip(".") for p in (path, field))
    if unknown:
        field = field or "''"
        known = sorted(fields_at(wanted, any_path))
        near = nearest(unknown[1], known)
        return InvalidInput(
            prefix + field,
            value,
            "a known field",
            message=f"{_readable(prefix + field)} is not a known field",
            cure=f"did you mean {near}?" if near else f"there are: {', '.join(known)}",
        )
    if missing:
        return InvalidInput(
            prefix + field, None, "left out", message=f"{prefix + field} is missing"
        )
    expected = checked[2] if checked else _in_words(text)
    if text.startswith("Invalid enum value"):
        expected = "one of " + ", ".join(choices(wanted, any_field))
    return InvalidInput(prefix + (field or "definition"), value, expected)


def _readable(path: str) -> str:
    return path if path.isprintable() and " " not in path else shown(path)


def _offending(definition: Any, path: str, name: str | None) -> Any:
    # msgspec does not say under which key of a mapping it was, and an unknown field may be
    # called anything: neither is a path that could be followed.
    known, dots, _ = path.partition("[...]")
    value = value_at(definition, known) if _PATH.fullmatch(known) or not known else None
    return value.get(name) if name and not dots and isinstance(value, Mapping) else value


def _with_key(definition: Any, wanted: type, path: str, problem: str) -> str | None:
    """``path`` with its first ``[...]`` made the key of the mapping that has the problem.

    Nothing where the key is none that could stand in a path.
    """
    mapping, _, rest = path.partition("[...]")
    entries = value_at(definition, mapping) if mapping else definition
    for key, value in entries.items():
        alone = assigned(definition, mapping, {key: value}) if mapping else {key: value}
        try:
            msgspec.convert(alone, wanted)
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            # Some later field may be wrong as well, which is no fault of this key.
            if str(error) == problem:
                return f"{mapping}.{key}{rest}".lstrip(".") if _KEY.fullmatch(key) else None
    return None


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "nothing",
}


def _in_words(problem: str) -> str:
    wanted = problem.removeprefix("Expected ").partition(", got")[0]
    if match := re.fullmatch(r"`(\w+)` ([<>=]+) (.*)", wanted):
        return f"{_WORDS.get(match[1], match[1])} {match[2]} {match[3]}"
    types_wanted = wanted.strip("`").split(" | ")
    return " or ".join(_WORDS.get(name, name) for name in types_wanted)


def value_at(definition: Any, path: str) -> Any:
    """What stands at a dotted path (``nics[0].mac``) of a definition; nothing if nothing does."""
    value = definition
    for part in split_path(path):
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def split_path(path: str) -> list[str | int]:
    """``nics[0].mac`` as ``["nics", 0, "mac"]``.

    :raises InvalidInput: it is no such path
    """
    if path and not _PATH.fullmatch(path):
        raise InvalidInput("field", path, "a dotted path, such as boot.kernel or nics[0].mac")
    parts = re.findall(r"\[([0-9]+)\]|([^.\[\]]+)", path)
    return [int(index) if index else word for index, word in parts]


def assigned(definition: Any, path: str, value: Any) -> Any:
    """A copy of ``definition`` with ``value`` at a dotted path; ``None`` removes what is there.

    :raises InvalidInput: the path leads through something that is neither mapping nor list, or
        past a list's end
    """
    if not path:
        raise InvalidInput("field", path, "a dotted path, such as boot.kernel or nics[0].mac")
    first, *rest = split_path(path)
    return _assigned(definition, first, rest, value, path)


def _assigned(below: Any, part: str | int, rest: list[str | int], value: Any, path: str) -> Any:
    copy: Any
    if isinstance(part, int):
        copy = list(below or ()) if isinstance(below, list | tuple | None) else None
        if copy is None or part > len(copy):
            raise InvalidInput(path, value, "inside a list that is long enough")
        if value is None and (part == len(copy) or not rest):
            return [item for index, item in enumerate(copy) if index != part]
        if part == len(copy):
            copy.append(None)
    else:
        if not isinstance(below, Mapping | None):
            raise InvalidInput(path, value, "inside a mapping")
        copy = dict(below or {})
        if value is None and not rest:
            copy.pop(part, None)
            return copy
    if not rest:
        copy[part] = value
        return copy
    inner = copy[part] if isinstance(part, int) else copy.get(part)
    changed = _assigned(inner, rest[0], rest[1:], value, path)
    if value is None and not changed and not isinstance(part, int):
        copy.pop(part, None)
    else:
        copy[part] = changed
    return copy


# --- what a type says of its fields ---------------------------------------------------


def _members(annotation: Any) -> list[Any]:
    """The plain types of an annotation, its unions and ``Annotated`` taken apart."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [m for arg in typing.get_args(annotation) for m in _members(arg)]
    return [annotation]


def fields_at(wanted: type | None, path: str = "") -> dict[str, Any]:
    """Names and annotations of the fields that may stand below a path; none if it is untyped."""
    structs = [m for m in types_at(wanted, path) if isinstance(m, type)]
    fields: dict[str, Any] = {}
    for struct in structs:
        if issubclass(struct, msgspec.Struct):
            fields |= typing.get_type_hints(struct, include_extras=True)
    return fields


def types_at(wanted: Any, path: str) -> list[Any]:
    """The plain types that may stand at a path; none where the definition says nothing of it."""
    found = _members(wanted) if wanted is not None else []
    for part in split_path(path):
        inner: list[Any] = []
        for member in found:
            origin, args = typing.get_origin(member), typing.get_args(member)
            if isinstance(part, int):
                if origin in (tuple, list) and args:
                    inner += _members(args[0])
            elif isinstance(member, type) and issubclass(member, msgspec.Struct):
                hints = typing.get_type_hints(member, include_extras=True)
                inner += _members(hints[part]) if part in hints else []
            elif origin in (dict, Mapping) and len(args) == 2:
                inner += _members(args[1])
        found = inner
    return [member for member in found if member is not Any]


def choices(wanted: Any, path: str) -> list[str]:
    """The values that an enumerated field may have; none for other fields."""
    return [
        str(value.value)
        for member in types_at(wanted, path)
        if isinstance(member, type) and issubclass(member, StrEnum)
        for value in member
    ]


def read_text(wanted: Any, path: str, text: str) -> Any:
    """The value that ``text``, typed by a person, has at a path of a definition.

    The field's type decides: where it is text, ``1.10`` and ``007`` stay what they are. JSON
    where it is a list or mapping, and where nothing is known of the field (text if it is no
    JSON).

    :raises InvalidInput: a list or mapping was wanted and the text is no JSON; or it is no text
        in UTF-8
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInput(path, text, "text in UTF-8") from None
    found = types_at(wanted, path)
    if not found:
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return text
    if bool in found and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if int in found and re.fullmatch(r"[+-]?[0-9]{1,30}", text):
        return int(text)
    if float in found and re.fullmatch(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?", text):
        return float(text)
    scalars = (str, int, float, bool, types.NoneType)
    if any(m is str or (isinstance(m, type) and issubclass(m, StrEnum)) for m in found):
        return text
    if all(m in scalars for m in found):
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise InvalidInput(path, text, "JSON", cure="quote it for your shell") from None
