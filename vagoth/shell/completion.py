"""Completion as a pure function of what was typed and what there is: no I/O, no terminal.

The command's signature says what stands at the cursor; the view, and the type of the definition
that is being written, say what fits there.
"""

from __future__ import annotations

import heapq
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from vagoth.definition import assigned, choices, fields_at, types_at, value_at
from vagoth.errors import VagothError
from vagoth.model import Record, State
from vagoth.shell import grammar
from vagoth.shell.cursor import Cursor, locate
from vagoth.shell.grammar import Marker, Registry
from vagoth.shell.line import GLOBAL_OPTIONS, GlobalOption
from vagoth.view import View, natural

#: More than this nobody reads; what is typed next narrows it.
LIMIT = 200
#: Options that only the start of a process can mean.
_AT_START = ("--config", "--store", "--sim", "--version")


class Kind(StrEnum):
    """What a suggestion is."""

    COMMAND = "command"
    OPTION = "option"
    NODE = "node"
    TYPE = "type"
    STATE = "state"
    TENANT = "tenant"
    TAG = "tag"
    KEY = "key"
    LINK = "link"
    FIELD = "field"
    VALUE = "value"


@dataclass(frozen=True)
class Suggestion:
    """What may stand from ``start`` to the cursor. ``about`` says what it is.

    ``goes_on``: more belongs to the same word, so it is not to be closed.
    """

    text: str
    start: int
    kind: Kind
    about: str = ""
    goes_on: bool = False


@dataclass(frozen=True)
class World:
    """What there is to suggest, besides commands.

    :param definition_type: the type of a definition, from the node type's name and a draft of it
    """

    view: View
    types: Sequence[str] = ()
    drivers: Sequence[str] = ()
    definition_type: Callable[[str, Mapping[str, Any]], Any] = lambda _type, _draft: None
    in_shell: bool = True


def complete(text: str, world: World, commands: Registry = grammar.COMMANDS) -> list[Suggestion]:
    """What may follow ``text``, the line up to the cursor; best first, at most :data:`LIMIT`."""
    cursor = locate(text, commands)
    if cursor is None:
        return []
    found: Iterable[Suggestion]
    if isinstance(cursor.argument, GlobalOption):
        found = ()
    elif cursor.argument is not None and cursor.argument.flag is not None:
        found = _values(cursor.argument.marker, cursor, world, commands)
    elif cursor.text.startswith("-") and not cursor.only_arguments:
        found = _options(cursor, world)
    elif cursor.command is None:
        found = _commands(cursor, world, commands)
    elif cursor.argument is not None:
        found = _values(cursor.argument.marker, cursor, world, commands)
    else:
        found = () if cursor.only_arguments else _options(cursor, world)
    return _best(cursor, found)


# --- what fits there ------------------------------------------------------------------------


def _commands(cursor: Cursor, world: World, commands: Registry) -> Iterator[Suggestion]:
    for command in commands.all():
        if command.in_shell if world.in_shell else command.on_command_line:
            yield Suggestion(command.name, cursor.start, Kind.COMMAND, command.summary)


def _options(cursor: Cursor, world: World) -> Iterator[Suggestion]:
    for option in cursor.command.options if cursor.command is not None else ():
        assert option.flag is not None
        if option.many or option.flag not in cursor.flags:
            yield Suggestion(option.flag, cursor.start, Kind.OPTION, option.help)
    # After an argument that is done, only what was begun by hand: not all that would be possible.
    if cursor.text or cursor.command is None:
        for each in GLOBAL_OPTIONS:
            if each.flag not in cursor.flags and not (world.in_shell and each.flag in _AT_START):
                yield Suggestion(each.flag, cursor.start, Kind.OPTION, each.help)


def _values(
    marker: Marker, cursor: Cursor, world: World, commands: Registry
) -> Iterable[Suggestion]:
    view, start = world.view, cursor.start
    match marker:
        case grammar.Names():
            return _nodes(marker, cursor, view)
        case grammar.TypeName():
            return [Suggestion(name, start, Kind.TYPE) for name in world.types]
        case grammar.StateName():
            return _counted({*State, *view.values("state")}, "state", Kind.STATE, start, view)
        case grammar.TenantName():
            return _counted(view.values("tenant"), "tenant", Kind.TENANT, start, view)
        case grammar.TagArg():
            return _counted(_tags(view), "tag", Kind.TAG, start, view)
        case grammar.KeyArg():
            return _keys(marker, cursor, view)
        case grammar.LinkArg():
            return _links(cursor, view)
        case grammar.Assignments():
            return _assignments(marker, cursor, world)
        case grammar.CommandName():
            return _commands(cursor, world, commands)
    return ()


def _nodes(marker: grammar.Names, cursor: Cursor, view: View) -> Iterator[Suggestion]:
    named = {name for names in cursor.given.values() for name in names}
    typed = cursor.text.lower()
    fits = [
        record
        for record in view
        if (marker.type is None or record.type == marker.type)
        and typed in record.name.lower()
        and record.name not in named
    ]
    for record in heapq.nsmallest(LIMIT, fits, key=lambda record: _rank(record.name, typed)):
        yield Suggestion(record.name, cursor.start, Kind.NODE, about(record, view))


def about(record: Record, view: View) -> str:
    """A node in a few words: type, state and place."""
    place = f" on {view.name_of(record.parent)}" if record.parent is not None else ""
    alarm = f" {record.alarm}" if record.alarm else ""
    return f"{record.type} {record.state}{alarm}{place}"


def _counted(
    values: Iterable[str], index: str, kind: Kind, start: int, view: View
) -> Iterator[Suggestion]:
    for value in sorted(values):
        count = view.count(index, value)
        yield Suggestion(str(value), start, kind, f"{count} node{'s' * (count != 1)}")


def _tags(view: View) -> list[str]:
    entries = view.values("tag")
    valued = {entry.partition("=")[0] for entry in entries if "=" in entry}
    return [entry for entry in entries if "=" in entry or entry not in valued]


def _keys(marker: grammar.KeyArg, cursor: Cursor, view: View) -> Iterator[Suggestion]:
    records: Iterable[Record] = view
    if marker.of is not None:
        record = _named(marker.of, cursor, view)
        records = [record] if record is not None else []
    for record in records:
        for key in record.keys:
            yield Suggestion(key, cursor.start, Kind.KEY, record.name)


def _links(cursor: Cursor, view: View) -> Iterator[Suggestion]:
    link, equals, target = cursor.text.partition("=")
    if equals:
        inner = Cursor(target, cursor.start)
        for node in _nodes(grammar.Names(), inner, view):
            yield Suggestion(f"{link}={node.text}", cursor.start, Kind.LINK, node.about)
        return
    for name in sorted({name for record in view for name in record.links}):
        yield Suggestion(f"{name}=", cursor.start, Kind.LINK, goes_on=True)


def _named(argument: str, cursor: Cursor, view: View) -> Record | None:
    names = cursor.given.get(argument)
    if not names:
        return None
    return view.by_name(names[0]) or view.get(names[0]) or view.by_key(names[0])


# --- field=value ------------------------------------------------------------------------------


def _assignments(marker: grammar.Assignments, cursor: Cursor, world: World) -> Iterator[Suggestion]:
    record = _named(marker.of, cursor, world.view) if marker.of is not None else None
    type_name = record.type if record is not None else cursor.given.get("type", ["vm"])[-1]
    before: Mapping[str, Any] = record.definition if record is not None else {}
    draft = before
    for word in cursor.given.get("fields", ()):
        path, _, text = word.partition("=")
        try:
            draft = assigned(draft, path, text or None)
        except VagothError:
            continue
    try:
        wanted = world.definition_type(type_name, draft)
    except VagothError:
        wanted = None
    path, equals, _ = cursor.text.partition("=")
    try:
        if equals:
            yield from _field_values(path, wanted, before, cursor, world)
        else:
            yield from _fields(path, wanted, draft, cursor)
            if wanted is None and not before:
                yield from _driver_field(type_name, cursor)
    except VagothError:
        # A path that cannot be read has nothing below it.
        return


def _driver_field(type_name: str, cursor: Cursor) -> Iterator[Suggestion]:
    # Until its driver is known, nothing else is known of a host.
    if type_name == "hv":
        yield Suggestion("driver=", cursor.start, Kind.FIELD, "what speaks to it", goes_on=True)


def _fields(
    path: str, wanted: Any, draft: Mapping[str, Any], cursor: Cursor
) -> Iterator[Suggestion]:
    above, dot, _ = path.rpartition(".")
    for name in fields_at(wanted, above):
        full = f"{above}{dot}{name}"
        plain, nested = _shapes(wanted, full)
        now = value_at(draft, full)
        told = f"now {now}" if now is not None and not nested else ""
        if plain or not nested:
            yield Suggestion(f"{full}=", cursor.start, Kind.FIELD, told, goes_on=True)
        if nested == "struct":
            yield Suggestion(f"{full}.", cursor.start, Kind.FIELD, goes_on=True)
        elif nested == "list":
            count = len(now) if isinstance(now, list | tuple) else 0
            for index in range(count + 1):
                told = "a new one" if index == count else ""
                yield Suggestion(f"{full}[{index}].", cursor.start, Kind.FIELD, told, goes_on=True)


def _shapes(wanted: Any, path: str) -> tuple[bool, str]:
    """Whether a plain value may stand at a path, and what may stand below it."""
    plain, nested = False, ""
    for member in types_at(wanted, path):
        if isinstance(member, type) and issubclass(member, msgspec.Struct):
            nested = "struct"
        elif typing.get_origin(member) in (tuple, list):
            items = types_at(wanted, f"{path}[0]")
            is_struct = any(isinstance(i, type) and issubclass(i, msgspec.Struct) for i in items)
            nested = "list" if is_struct else nested
            plain = plain or not is_struct
        elif member is not type(None):
            plain = True
    return plain, nested


def _field_values(
    path: str, wanted: Any, before: Mapping[str, Any], cursor: Cursor, world: World
) -> Iterator[Suggestion]:
    now = value_at(before, path)
    values = dict.fromkeys(choices(wanted, path), "")
    if bool in types_at(wanted, path):
        values |= {"true": "", "false": ""}
    if path == "driver":
        values |= dict.fromkeys(world.drivers, "")
    if isinstance(now, str | int | float):
        shown = str(now).lower() if isinstance(now, bool) else str(now)
        values[shown] = "now"
    for value, told in values.items():
        yield Suggestion(f"{path}={value}", cursor.start, Kind.VALUE, told)


# --- which of them -------------------------------------------------------------------------


def _rank(text: str, typed: str) -> tuple[bool, tuple[tuple[str, int, str], ...]]:
    return not text.lower().startswith(typed), natural(text)


def _best(cursor: Cursor, found: Iterable[Suggestion]) -> list[Suggestion]:
    """Those that begin with what was typed, then those that hold it; in the order they came."""
    typed = cursor.text.lower()
    begin: list[Suggestion] = []
    hold: list[Suggestion] = []
    for suggestion in found:
        text = suggestion.text.lower()
        if text.startswith(typed):
            begin.append(suggestion)
        elif typed in text and suggestion.kind is not Kind.COMMAND:
            hold.append(suggestion)
    return (begin + hold)[:LIMIT]
