"""A typed line as words, and the options that stand before or after any command."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from vagoth.errors import InvalidInput


class Options(msgspec.Struct, frozen=True):
    """The global options, as typed."""

    config: str | None = None
    store: str | None = None
    sim: int | None = None
    wait_s: float = 0.0
    json: bool = False
    dry_run: bool = False
    debug: bool = False
    version: bool = False
    help: bool = False


NO_OPTIONS = Options()


class GlobalOption(msgspec.Struct, frozen=True):
    """One global option: how it is typed, the field it sets, and what it is for."""

    flag: str
    field: str
    takes: str | None
    help: str


GLOBAL_OPTIONS = (
    GlobalOption("--config", "config", "FILE", "read this vagoth.toml"),
    GlobalOption("--store", "store", "FILE", "keep nodes in this store"),
    GlobalOption("--sim", "sim", "N", "work on N simulated hosts, with a store of their own"),
    GlobalOption("--wait", "wait_s", "SECONDS", "wait so long for a node another process works on"),
    GlobalOption("--json", "json", None, "print JSON alone on standard output"),
    GlobalOption("--dry-run", "dry_run", None, "show what would be done, and do nothing"),
    GlobalOption("--debug", "debug", None, "log everything, and show where errors come from"),
    GlobalOption("--version", "version", None, "print the version"),
    GlobalOption("--help", "help", None, "explain the command"),
)
#: What splits or joins words; patterns and variables mean nothing here.
_SPECIAL = re.compile(r"[\s'\"\\]")
_BY_FLAG = {option.flag: option for option in GLOBAL_OPTIONS}


def split(line: str) -> list[str]:
    """The words of a line, with quotes and backslashes as in a POSIX shell.

    :raises InvalidInput: a quote is not closed, or the line ends in a backslash
    """
    try:
        return shlex.split(line)
    except ValueError as error:
        problem = "a quote is not closed" if "quot" in str(error) else "it ends in a backslash"
        raise InvalidInput("line", line, "", message=f"{line.strip()!r}: {problem}") from None


def take_options(words: Sequence[str], given: Options = NO_OPTIONS) -> tuple[Options, list[str]]:
    """Global options out of ``words``, wherever they stand before ``--``; the rest in order.

    :raises InvalidInput: one lacks its value, or that is no number where it must be
    """
    rest: list[str] = []
    found: dict[str, Any] = {}
    pending = list(words)
    while pending:
        word = pending.pop(0)
        if word == "--":
            rest += [word, *pending]
            break
        flag, equals, value = word.partition("=")
        option = _BY_FLAG.get("--help" if word == "-h" else flag)
        if option is None:
            rest.append(word)
            continue
        if option.takes is None:
            if equals:
                raise InvalidInput(flag, value, "", message=f"{flag} takes no value")
            found[option.field] = True
            continue
        if not equals:
            if not pending:
                raise InvalidInput(
                    flag, None, "", message=f"{flag} needs a value: {flag} {option.takes}"
                )
            value = pending.pop(0)
        found[option.field] = _read(option, value)
    return replace(given, **found), rest


def _read(option: GlobalOption, value: str) -> str | int | float:
    if option.takes == "N":
        if not value.isascii() or not value.isdecimal() or len(value) > 6:
            raise InvalidInput(option.flag, value, "a number of hosts")
        return int(value)
    if option.takes == "SECONDS":
        try:
            seconds = float(value)
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= 86400:
            raise InvalidInput(option.flag, value, "a number of seconds from 0 to 86400")
        return seconds
    if not value:
        raise InvalidInput(option.flag, value, "a path")
    return value


class Word(msgspec.Struct, frozen=True):
    """A word as typed so far: its meaning, where it starts, and the quote left open, if any."""

    text: str
    start: int
    quote: str = ""


def partial_words(text: str) -> list[Word]:
    """The words of an unfinished line; the last is the one being typed, maybe empty.

    Never fails: an open quote is part of the last word.
    """
    words: list[Word] = []
    letters: list[str] = []
    start, quote, escaped = -1, "", False
    for index, char in enumerate(text):
        if start < 0:
            if char.isspace():
                continue
            start = index
        if escaped:
            letters.append(char)
            escaped = False
        elif char == "\\" and quote != "'":
            escaped = True
        elif quote:
            if char == quote:
                quote = ""
            else:
                letters.append(char)
        elif char in "'\"":
            quote = char
        elif char.isspace():
            words.append(Word("".join(letters), start))
            letters, start = [], -1
        else:
            letters.append(char)
    words.append(Word("".join(letters), start if start >= 0 else len(text), quote))
    return words


def quoted(text: str, *, partial: bool = False) -> str:
    """``text`` as it must be typed here to be one word; ``partial``: more of it will follow."""
    if text and not _SPECIAL.search(text):
        return text
    return "'" + text.replace("'", "'\"'\"'") + ("" if partial else "'")
