"""TinyDB queries on records: what an index can say of one before it is asked of each record.

A hint only narrows down which records a query is tried on; the query itself decides. So a query
that is not understood here costs a look at every record, and nothing else. Pure, and without
TinyDB: a query's structure is read from the value that it is compared and cached by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from vagoth.errors import InvalidInput
from vagoth.model import Record

Query = Callable[[Mapping[str, Any]], bool]


class Among(NamedTuple):
    """Records found under one of these values of an index.

    The indexes are those of :class:`vagoth.view.View`, and ``id``, ``name`` and ``key``.
    """

    field: str
    values: frozenset[str]


class Every(NamedTuple):
    """Records that meet all of these."""

    parts: tuple[Hint, ...]


class Either(NamedTuple):
    """Records that meet one of these, or several."""

    parts: tuple[Hint, ...]


Hint = Among | Every | Either

_FIELDS = frozenset({"id", "name", "type", "state", "parent", "tenant"})


class Document(Mapping[str, Any]):
    """A record as the store's file holds it: lists where JSON has lists; made as it is read."""

    __slots__ = ("_record",)

    def __init__(self, record: Record) -> None:
        self._record = record

    def __getitem__(self, field: str) -> Any:
        if field not in _NAMES:
            raise KeyError(field)
        value = getattr(self._record, field)
        if type(value) is tuple:
            return list(value)
        if field == "links":
            return {name: list(targets) for name, targets in value.items()}
        if field == "intent":
            return msgspec.to_builtins(value)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(Record.__struct_fields__)

    def __len__(self) -> int:
        return len(Record.__struct_fields__)


_NAMES = frozenset(Record.__struct_fields__)


def hint_of(query: Query) -> Hint | None:
    """What holds for every record that the query is true of, as far as an index can tell.

    As TinyDB's own cache does, this takes a query for what it was when it was made: a list given
    to ``one_of`` or ``any`` must not be changed afterwards.

    :return: nothing if no index serves, the query is not TinyDB's, or its structure is unknown
    :raises InvalidInput: it is a field alone, without what should hold for it
    """
    for cls in type(query).__mro__:
        if (cls.__module__, cls.__name__) == ("tinydb.queries", "QueryInstance"):
            break
    else:
        return None
    # Not by getattr: a query makes up any attribute that it is asked for.
    structure = vars(query).get("_hash")
    if isinstance(structure, tuple) and structure[:1] in ((None,), ("path",)):
        raise InvalidInput("conditions", query, "a comparison, such as where('state') == 'running'")
    return _hint(structure) if type(query).__call__ is cls.__call__ else None


def every(hints: list[Hint]) -> Hint | None:
    """What holds where all of these do."""
    return None if not hints else hints[0] if len(hints) == 1 else Every(tuple(hints))


def _hint(structure: object) -> Hint | None:
    match structure:
        case ("and", frozenset() as parts):
            return every([found for part in parts if (found := _hint(part)) is not None])
        case ("or", frozenset() as parts):
            known = tuple(hint for part in parts if (hint := _hint(part)) is not None)
            return Either(known) if known and len(known) == len(parts) else None
        case ("==", tuple() as path, value):
            return _equal(path, (value,)) or _present(path)
        case ("one_of", tuple() as path, (tuple() | frozenset()) as values):
            return _equal(path, values) or _present(path)
        case ("any", ("keys",), (tuple() | frozenset()) as values):
            return _among("key", values)
        case ("all", ("keys",), (tuple() | frozenset()) as values):
            return _all("key", values)
        case ("any", ("links", _), (tuple() | frozenset()) as values):
            return _among("linked", values)
        case ("all", ("links", _), (tuple() | frozenset()) as values):
            return _all("linked", values)
        # Not `fragment`: its structure does not tell below which field it is wanted.
        case (
            "exists" | "!=" | "<" | "<=" | ">" | ">=" | "matches" | "search" | "test",
            tuple() as path,
            *_,
        ):
            return _present(path)
    return None


def _equal(path: tuple[object, ...], values: tuple[object, ...] | frozenset[object]) -> Hint | None:
    match path:
        case (str() as field,) if field in _FIELDS:
            return _among(field, values)
        case ("tags", str() as tag):
            texts = _texts(values)
            if texts is not None:
                return Among("tag", frozenset(f"{tag}={text}" if text else tag for text in texts))
    return None


def _present(path: tuple[object, ...]) -> Hint | None:
    """Whatever is said of a tag, it must be there."""
    match path:
        case ("tags", str() as tag, *_):
            return Among("tag", frozenset({tag}))
    return None


def _among(index: str, values: tuple[object, ...] | frozenset[object]) -> Hint | None:
    texts = _texts(values)
    return Among(index, texts) if texts is not None else None


def _all(index: str, values: tuple[object, ...] | frozenset[object]) -> Hint | None:
    texts = _texts(values)
    return every([Among(index, frozenset({text})) for text in texts]) if texts else None


def _texts(values: tuple[object, ...] | frozenset[object]) -> frozenset[str] | None:
    """The values as plain text, if all of them are equal to that text and to no other."""
    texts = set()
    for value in values:
        if not isinstance(value, str) or type(value).__eq__ is not str.__eq__:
            return None
        texts.add(str.__str__(value))
    return frozenset(texts)
