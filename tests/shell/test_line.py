"""Words out of lines, finished and unfinished, and global options wherever they stand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vagoth.errors import InvalidInput
from vagoth.shell.line import Options, partial_words, quoted, split, take_options


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("  list   web* ", ["list", "web*"]),
        ('new a \'nics=[{"network": "lan"}]\'', ["new", "a", 'nics=[{"network": "lan"}]']),
        (r"info a\ b", ["info", "a b"]),
        ("set a --tenant ''", ["set", "a", "--tenant", ""]),
        ("info $(reboot) # no", ["info", "$(reboot)", "#", "no"]),
    ],
)
def test_words_are_split_as_in_a_posix_shell(line: str, words: list[str]) -> None:
    assert split(line) == words


@pytest.mark.parametrize(
    ("line", "told"),
    [("info 'web", "a quote is not closed"), ('a "', "a quote"), ("a \\", "ends in a backslash")],
)
def test_what_cannot_be_split_is_told_in_words(line: str, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        split(line)


@pytest.mark.parametrize(
    ("words", "options", "rest"),
    [
        (["list"], Options(), ["list"]),
        (["--json", "list"], Options(json=True), ["list"]),
        (["list", "--json", "web*"], Options(json=True), ["list", "web*"]),
        (["--sim", "3", "list"], Options(sim=3), ["list"]),
        (["list", "--sim=3"], Options(sim=3), ["list"]),
        (["--store", "--json", "list"], Options(store="--json"), ["list"]),
        (["start", "a", "--wait", "2.5"], Options(wait_s=2.5), ["start", "a"]),
        (["info", "--", "--json"], Options(), ["info", "--", "--json"]),
        (["start", "-h"], Options(help=True), ["start"]),
        (["list", "--type", "vm"], Options(), ["list", "--type", "vm"]),
    ],
)
def test_global_options_stand_before_or_after_the_command(
    words: list[str], options: Options, rest: list[str]
) -> None:
    assert take_options(words) == (options, rest)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["list", "--store"], "--store needs a value: --store FILE"),
        (["--sim", "x"], "--sim: 'x' is not a number of hosts"),
        (["--sim", "-1"], "--sim: '-1'"),
        (["--sim", "١"], "--sim: '١'"),
        (["--wait", "soon"], "--wait: 'soon' is not a number of seconds"),
        (["--wait", "nan"], "--wait: 'nan'"),
        (["--json=yes"], "--json takes no value"),
        (["--store="], "--store: '' is not a path"),
    ],
)
def test_a_global_option_that_makes_no_sense_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        take_options(words)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", [("", 0, "")]),
        ("st", [("st", 0, "")]),
        ("start ", [("start", 0, ""), ("", 6, "")]),
        ("info 'a b", [("info", 0, ""), ("a b", 5, "'")]),
        ("a 'b' c", [("a", 0, ""), ("b", 2, ""), ("c", 6, "")]),
        (r"a b\ c", [("a", 0, ""), ("b c", 2, "")]),
    ],
)
def test_an_unfinished_line_has_words_too(text: str, words: list[tuple[str, int, str]]) -> None:
    assert [(word.text, word.start, word.quote) for word in partial_words(text)] == words


@settings(deadline=None)
@given(st.lists(st.text(min_size=0, max_size=8), min_size=1, max_size=4))
def test_what_is_quoted_is_read_back(words: list[str]) -> None:
    line = " ".join(map(quoted, words))
    assert split(line) == words
    assert [word.text for word in partial_words(line + " ")][:-1] == words


@settings(deadline=None)
@given(st.text(max_size=12))
def test_what_is_quoted_in_part_can_be_gone_on_with(text: str) -> None:
    [word] = partial_words(quoted(text, partial=True))
    assert word.text == text
