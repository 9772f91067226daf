"""Lines as calls, and what is wrong with those that are none."""

from __future__ import annotations

from typing import Any

import pytest

from vagoth.errors import InvalidInput
from vagoth.shell.line import split
from vagoth.shell.parser import parse


@pytest.mark.parametrize(
    ("line", "args", "given"),
    [
        ("list", (), {}),
        ("list web*", ("web*",), {}),
        ("list --type vm --tag a=b --tag c", (), {"type": "vm", "tag": ("a=b", "c")}),
        ("list --type=vm web*", ("web*",), {"type": "vm"}),
        ("start a b --on hv1 c", ("a", "b", "c"), {"on": "hv1"}),
        ("start --on hv1 a", ("a",), {"on": "hv1"}),
        ("start -- --on", ("--on",), {}),
        ("shutdown a --grace 1.5", ("a",), {"grace": 1.5}),
        ("migrate a hv2", ("a", "hv2"), {}),
        ("new a memory=-1", ("a", "memory=-1"), {}),
        ("new a memory=128 --type vm kind=qemu", ("a", "memory=128", "kind=qemu"), {"type": "vm"}),
        ("set a --name b --tenant ''", ("a",), {"name_": "b", "tenant": ""}),
        ("set a boot= --no-key x:1", ("a", "boot="), {"no_key": ("x:1",)}),
        (
            "set a x=1 --link members=b --link members=c",
            ("a", "x=1"),
            {"link": ("members=b", "members=c")},
        ),
        ("poll", (), {}),
        ("info '$(reboot)'", ("$(reboot)",), {}),
    ],
)
def test_a_line_is_read_by_the_commands_signature(
    line: str, args: tuple[Any, ...], given: dict[str, Any]
) -> None:
    parsed = parse(split(line))
    assert parsed.args == args
    assert parsed.kwargs == given


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("lst", "there is no command 'lst' (did you mean list?)"),
        ("xyzzy", "there is no command 'xyzzy' (see: vagoth help)"),
        ("--jsno list", "there is no option '--jsno' (did you mean --json?)"),
        ("list --jsno", "list has no option '--jsno' (did you mean --json?)"),
        ("list --typ vm", "list has no option '--typ' (did you mean --type?)"),
        ("list --typ=vm", "list has no option '--typ' (did you mean --type?)"),
        ("list -x", "list has no option '-x'"),
        ("info --name", "info has no option '--name'"),
        ("info", "info: NAME is missing (usage: info NAME)"),
        ("start", "start: NAME is missing (usage: start NAME… [--on HOST])"),
        ("migrate a", "migrate: HOST is missing (usage: migrate NAME HOST)"),
        ("info a b", "info takes no further argument: 'b' (usage: info NAME)"),
        ("start a --on", "--on needs a value: --on HOST"),
        ("start a --on --json", "--on needs a value: --on HOST"),
        ("start a --on x --on y", "--on is given more than once"),
        ("shutdown a --grace soon", "--grace: 'soon' is not a number"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(line: str, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(split(line))
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_help_is_for_commands_that_are_not_yet_complete() -> None:
    parsed = parse(["migrate", "--help"])
    assert parsed.command is not None
    assert parsed.command.name == "migrate"
    assert parsed.options.help


def test_an_empty_line_names_no_command() -> None:
    assert parse([]).command is None
    assert parse(["--json"]).options.json
