"""Where in an unfinished line the cursor is, by the signature of its command: pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from vagoth.shell.grammar import Argument, Command, Registry
from vagoth.shell.line import GLOBAL_OPTIONS, GlobalOption, partial_words


@dataclass
class Cursor:
    """Where in a line the cursor is: at which argument of which command, after what.

    ``text`` is what of the word at the cursor is typed already, and ``start`` where that begins;
    ``given`` what stands before it, by argument; ``argument`` what the word is, if that is known.
    """

    text: str
    start: int
    command: Command | None = None
    argument: Argument | GlobalOption | None = None
    given: dict[str, list[str]] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    only_arguments: bool = False


def locate(text: str, commands: Registry) -> Cursor | None:
    """Where the cursor is, at the end of ``text``; nothing where no command can be told."""
    *before, current = partial_words(text)
    cursor = Cursor(current.text, current.start)
    pending: Argument | GlobalOption | None = None
    positional = 0
    for word in (each.text for each in before):
        if pending is not None:
            if isinstance(pending, Argument):
                cursor.given.setdefault(pending.name, []).append(word)
            pending = None
        elif word == "--" and not cursor.only_arguments:
            cursor.only_arguments = True
        elif word.startswith("-") and not cursor.only_arguments:
            pending = _opened(word, cursor)
        elif cursor.command is None:
            if word not in commands.modules:
                return None
            cursor.command = commands.get(word)
        else:
            argument = _positional(cursor.command, positional)
            if argument is not None:
                cursor.given.setdefault(argument.name, []).append(word)
            positional += 1
    if pending is None and not cursor.only_arguments and cursor.text.startswith("--"):
        pending = _behind_equals(cursor)
    if pending is not None:
        cursor.argument = pending
    elif cursor.command is not None:
        cursor.argument = _positional(cursor.command, positional)
    return cursor


def _opened(word: str, cursor: Cursor) -> Argument | GlobalOption | None:
    """The option that a word is, if it wants its value from the next word."""
    flag, equals, value = word.partition("=")
    option = _option(flag, cursor.command)
    cursor.flags.add(flag)
    if option is None:
        return None
    if not equals:
        takes = option.takes_value if isinstance(option, Argument) else option.takes is not None
        return option if takes else None
    if isinstance(option, Argument):
        cursor.given.setdefault(option.name, []).append(value)
    return None


def _behind_equals(cursor: Cursor) -> Argument | GlobalOption | None:
    """The option in ``--option=value``; the cursor is then at the value alone."""
    flag, equals, value = cursor.text.partition("=")
    option = _option(flag, cursor.command) if equals else None
    if option is not None:
        # In the line, what stands before the value is as long as typed: options hold no quotes.
        cursor.start += len(flag) + 1
        cursor.text = value
    return option


def _option(flag: str, command: Command | None) -> Argument | GlobalOption | None:
    own = command.option(flag) if command is not None else None
    return own or next((option for option in GLOBAL_OPTIONS if option.flag == flag), None)


def _positional(command: Command, index: int) -> Argument | None:
    arguments = command.arguments
    if index < len(arguments):
        return arguments[index]
    return arguments[-1] if arguments and arguments[-1].many else None
