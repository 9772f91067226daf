"""What holds for every command, whatever it does."""

from __future__ import annotations

import pytest

from vagoth.errors import InvalidInput
from vagoth.shell.commands.shell import help_of, overview
from vagoth.shell.grammar import COMMANDS, Command, Marker
from vagoth.shell.line import GLOBAL_OPTIONS

ALL = COMMANDS.all()
ids = [command.name for command in ALL]

DESIGNED = {
    "new",
    "delete",
    "rename",
    "set",
    "list",
    "tree",
    "info",
    "define",
    "start",
    "shutdown",
    "stop",
    "reboot",
    "pause",
    "resume",
    "undefine",
    "migrate",
    "poll",
    "check",
    "watch",
    "monitor",
    "jobs",
    "edit",
    "shell",
    "help",
}


def test_all_designed_commands_are_there() -> None:
    assert {*COMMANDS.names()} >= DESIGNED


@pytest.mark.parametrize("command", ALL, ids=ids)
def test_a_command_is_in_the_module_that_is_imported_for_it(command: Command) -> None:
    assert COMMANDS.modules[command.name] == command.run.__module__


@pytest.mark.parametrize("command", ALL, ids=ids)
def test_each_command_and_all_it_takes_is_explained(command: Command) -> None:
    assert command.summary
    for argument in (*command.arguments, *command.options):
        assert argument.help, argument.name
        assert type(argument.marker) is not Marker, argument.name


@pytest.mark.parametrize("command", ALL, ids=ids)
def test_no_option_of_a_command_hides_a_global_one(command: Command) -> None:
    assert not {option.flag for option in command.options} & {each.flag for each in GLOBAL_OPTIONS}


@pytest.mark.parametrize("command", ALL, ids=ids)
def test_help_fits_a_terminal_and_needs_no_markup(command: Command) -> None:
    text = help_of(command)
    assert "``" not in text
    assert max(map(len, text.splitlines())) < 80
    assert command.usage.split()[0] in text


def test_usage_shows_what_must_be_given_and_what_may() -> None:
    assert COMMANDS.get("migrate").usage == "migrate NAME HOST"
    assert COMMANDS.get("start").usage == "start NAME… [--on HOST]"
    assert COMMANDS.get("poll").usage == "poll [HOST…]"
    assert COMMANDS.get("rename").usage == "rename NAME NAME"
    assert "[--tag KEY[=VALUE]…]" in COMMANDS.get("new").usage


def test_an_unknown_command_is_told_with_the_nearest_one() -> None:
    with pytest.raises(InvalidInput, match=r"no command 'strat' \(did you mean start\?\)"):
        COMMANDS.get("strat")


def test_the_overview_leaves_out_what_makes_no_sense_there() -> None:
    inside, outside = overview(in_shell=True), overview(in_shell=False)
    assert "  exit " in inside
    assert "  exit " not in outside
    assert "  monitor " in outside
    assert "  monitor " not in inside
    assert "--store" not in inside
