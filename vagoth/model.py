"""Records, changes and commits: what the registry keeps and what crosses every boundary.

All of it is frozen. A record that changes is a new record; who holds the old one keeps
the old one. Times are seconds since the epoch, as :func:`time.time` gives them.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, NoReturn

import msgspec

from vagoth.errors import InvalidInput

NAME_LENGTH = 63
KEY_LENGTH = 255
_NAME_FORBIDDEN = re.compile(r"[/:*?\s\x00-\x1f\x7f-\x9f]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_KEY_FORBIDDEN = re.compile(r"[/*?\s]")
_ID_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


class State(StrEnum):
    """The states that Vagoth itself writes. Types without a driver may use any word."""

    # VMs at rest
    NEW = "new"
    DEFINED = "defined"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    CRASHED = "crashed"
    # VMs on the way
    STARTING = "starting"
    STOPPING = "stopping"
    MIGRATING = "migrating"
    # VMs in doubt
    UNKNOWN = "unknown"
    MISSING = "missing"
    # hosts
    UP = "up"
    UNREACHABLE = "unreachable"
    UNSEEN = "unseen"


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who works on a node: a process, its transaction, and since when."""

    process: int
    machine: str
    user: str = ""
    source: str = ""
    txid: str = ""
    since: float = 0.0

    def __str__(self) -> str:
        who = f"process {self.process} on {self.machine}"
        if self.user:
            who += f" ({self.user})"
        return f"{who}, transaction {self.txid}" if self.txid else who


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """What an action is about to do to a node, written before its first step.

    Found on a node whose lock is free, its owner died half-way: ``args`` then tells which
    hosts (by id) to ask what is true.
    """

    action: str
    txid: str
    since: float
    owner: Holder
    args: Mapping[str, str] = {}


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A node as the registry keeps it.

    ``revision`` is opaque and changes with each commit of the record; the registry sets it.
    ``claimed_at`` is when ``parent`` was claimed, ``former`` the hosts (by id) that carried
    the node before, latest first. ``alarm`` stands beside the state (``duplicate``). ``applied``
    is a digest of the definition that the host was last given; see :func:`digest`.
    """

    id: str
    name: str
    type: str = "vm"
    state: str = State.NEW
    state_since: float = 0.0
    tenant: str | None = None
    parent: str | None = None
    claimed_at: float | None = None
    former: tuple[str, ...] = ()
    tags: Mapping[str, str] = {}
    keys: tuple[str, ...] = ()
    links: Mapping[str, tuple[str, ...]] = {}
    definition: Mapping[str, Any] = {}
    metadata: Mapping[str, Any] = {}
    intent: Intent | None = None
    alarm: str | None = None
    applied: str = ""
    created: float = 0.0
    updated: float = 0.0
    revision: str = ""


class RecordChange(msgspec.Struct, frozen=True):
    """One record before and after a commit: created (no before), deleted (no after), or changed."""

    before: Record | None
    after: Record | None

    @property
    def record(self) -> Record:
        """The record after the change, or as it last was when it was deleted."""
        record = self.after if self.after is not None else self.before
        assert record is not None
        return record

    def fields(self) -> Iterator[str]:
        """Names of the fields that differ, bookkeeping left out."""
        for field in Record.__struct_fields__:
            if field in ("revision", "updated", "state_since"):
                continue
            if getattr(self.before, field, None) != getattr(self.after, field, None):
                yield field


class Commit(msgspec.Struct, frozen=True, kw_only=True):
    """One atomic change of the registry.

    ``position`` is opaque: give it to ``watch(since=…)`` to receive all that came after it.
    """

    position: str
    txid: str
    time: float
    source: str
    reason: str
    changes: tuple[RecordChange, ...]


class Put(msgspec.Struct, frozen=True):
    """Wanted: this record, new or changed. Its ``revision`` is ignored; see ``expect``."""

    record: Record


class Delete(msgspec.Struct, frozen=True):
    """Wanted: no record of this id."""

    id: str


Change = Put | Delete


def new_id() -> str:
    """An id for a node: twelve letters and digits, opaque, about 60 bits of chance."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(12))


def new_txid() -> str:
    """An id for a transaction: ten letters and digits."""
    # One look at the system's chance, not one for each letter: each commit may need one.
    return "".join(_ID_ALPHABET[byte % len(_ID_ALPHABET)] for byte in secrets.token_bytes(10))


def digest(record: Record) -> str:
    """What the host's idea of a node depends on, its name and definition, in a few letters."""
    text = msgspec.json.encode([record.name, record.definition], order="deterministic")
    return hashlib.sha256(text).hexdigest()[:16]


def guest_uuid_of(record: Record) -> str | None:
    """The UUID by which hosts know the node as their guest; nothing if it is no machine.

    It is a key, which every VM has, whatever the type is called that inherits from it.
    """
    for key in record.keys:
        if key.startswith("uuid:"):
            return key.removeprefix("uuid:")
    return None


def check_name(value: str, *, field: str = "name") -> str:
    """Return ``value`` if a node may be called so.

    :raises InvalidInput: it is empty, longer than 63 characters, begins with ``-``, or holds
        blanks, control characters or one of ``/ : * ?``
    """
    if (
        not isinstance(value, str)
        or not 1 <= len(value) <= NAME_LENGTH
        or value.startswith("-")
        or _NAME_FORBIDDEN.search(value)
        or not _encodable(value)
    ):
        raise InvalidInput(
            field,
            value,
            f"1 to {NAME_LENGTH} characters, none of / : * ?, blanks or control characters,"
            " and no leading -",
        )
    return value


def check_id(value: str) -> str:
    """Return ``value`` if it may be a node's id: the rules for names hold for ids too."""
    return check_name(value, field="id")


def check_key(value: str, *, field: str = "keys") -> str:
    """Return ``value`` if it may be a key: ``kind:value``, such as ``asset:4711``.

    :raises InvalidInput: no colon, nothing on one side of it, longer than 255 characters, or
        blanks, control characters or one of ``/ * ?`` in it
    """
    kind, colon, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
    if (
        not (kind and colon and rest)
        or len(value) > KEY_LENGTH
        or _KEY_FORBIDDEN.search(value)
        or _CONTROL.search(value)
        or not _encodable(value)
    ):
        raise InvalidInput(
            field,
            value,
            f"kind:value, such as asset:4711: at most {KEY_LENGTH} characters, none of / * ?,"
            " blanks or control characters",
        )
    return value


def check_text(value: str, *, field: str, length: int = 255, empty: bool = False) -> str:
    """Return ``value`` if it is a line of text: for tags, tenants and states.

    :raises InvalidInput: too long, empty where that means nothing, or control characters in it
    """
    if (
        not isinstance(value, str)
        or len(value) > length
        or (not value and not empty)
        or _CONTROL.search(value)
        or not _encodable(value)
    ):
        raise InvalidInput(
            field, value, f"one line of at most {length} characters, without control characters"
        )
    return value


def _encodable(text: str) -> bool:
    # A lone surrogate comes in through argv when its bytes are no UTF-8.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class ReadOnlyDict(dict[str, Any]):
    """A dict that can be read, compared and serialised, and refuses to be changed."""

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError("this is read-only: change a node with `await node.set(…)`")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, and what comes out of a pickle, is plain: it is the taker's own.
        return dict, (dict(self),)


class ReadOnlyList(list[Any]):
    """A list that can be read, compared and serialised, and refuses to be changed."""

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError("this is read-only: change a node with `await node.set(…)`")

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = extend = insert = remove = pop = clear = sort = reverse = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def read_only(value: Any) -> Any:
    """A copy of plain data, all the way down, that refuses to be changed."""
    if isinstance(value, Mapping):
        return ReadOnlyDict({key: read_only(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return ReadOnlyList([read_only(item) for item in value])
    return value


def merge_patch(target: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """``target`` with ``patch`` laid over it, as RFC 7396 says.

    Mappings merge key by key, ``None`` removes a key, anything else replaces.
    """
    merged = dict(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = merge_patch(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged
