"""Tables as people and programs get them: units, states, widths, escapes."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from vagoth.model import State
from vagoth.render import (
    STATES,
    ago,
    as_csv,
    as_json,
    as_rich,
    cell,
    html,
    one_line,
    plain,
    size,
    state_style,
)
from vagoth.scheduler import JobState
from vagoth.tables import Column, Look, Table

NOW = 1_700_000_000.0

TABLE = Table(
    "nodes",
    (
        Column("name", "NAME", Look.NAME),
        Column("state", "STATE", Look.STATE),
        Column("memory", "MEMORY", Look.BYTES, weight=1),
        Column("tags", "TAGS", Look.LIST, weight=2),
        Column("seen", "SEEN", Look.TIME, weight=3),
    ),
    [
        ("web1", "running", 512 * 1024**2, ["env=prod", "tier"], NOW - 12),
        ("a-much-longer-name", "running duplicate", 1.5 * 1024**3, [], None),
    ],
    notes=["web1 is shown for an example"],
)


def drawn(table: Table, *, width: int = 80, colour: bool = False, symbols: bool = True) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
    )
    console.print(as_rich(table, width=width, symbols=symbols, now=NOW))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (512 * 1024**2, "512MiB"),
        (1.5 * 1024**3, "1.5GiB"),
        (2 * 1024**4, "2TiB"),
        (5000 * 1024**4, "5000TiB"),
    ],
)
def test_sizes_are_in_binary_units(bytes_: float, text: str) -> None:
    assert size(bytes_) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (3600, "1h"),
        (90000, "1d"),
        (-0.5, "0s"),
        (-90, "in 1m"),
    ],
)
def test_times_are_relative(seconds: float, text: str) -> None:
    assert ago(NOW - seconds, NOW) == text


@pytest.mark.parametrize(
    ("value", "look", "text"),
    [
        (None, Look.TEXT, "-"),
        ("", Look.NAME, "-"),
        ([], Look.LIST, "-"),
        ({}, Look.LIST, "-"),
        (0, Look.NUMBER, "0"),
        (False, Look.TEXT, "no"),
        (0.5, Look.NUMBER, "0.5"),
        (["a", "b"], Look.LIST, "a,b"),
        ({"env": "prod", "tier": ""}, Look.LIST, "env=prod,tier"),
        ("a\nb\x1b[31m", Look.TEXT, "a\\nb\\x1b[31m"),
    ],
)
def test_each_value_has_one_form(value: object, look: Look, text: str) -> None:
    assert cell(value, look, NOW) == text


def test_into_a_pipe_go_aligned_columns_that_can_be_split_at_blanks() -> None:
    assert plain(TABLE, notes=False, now=NOW).splitlines() == [
        "NAME                STATE              MEMORY  TAGS           SEEN",
        "web1                running            512MiB  env=prod,tier   12s",
        "a-much-longer-name  running duplicate  1.5GiB  -                 -",
    ]


def test_wide_letters_are_counted_as_terminals_draw_them() -> None:
    table = Table("", (Column("a", "A"), Column("b", "B")), [("日本", "x"), ("abcd", "y")])
    assert plain(table).splitlines() == ["A     B", "日本  x", "abcd  y"]


def test_an_empty_table_is_its_titles() -> None:
    assert plain(Table("", (Column("a", "A"), Column("b", "B")), [])) == "A  B\n"


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_table_fits_the_terminal(width: int) -> None:
    assert max(map(len, drawn(TABLE, width=width).splitlines())) <= width


def test_in_a_narrow_terminal_the_heaviest_columns_go_and_a_note_says_so() -> None:
    text = drawn(TABLE, width=52)
    assert "a-much-longer-name" in text
    assert "duplicate" in text
    assert "too narrow for: TAGS, SEEN" in " ".join(text.split())


def test_a_terminal_shows_symbols_and_no_unicode_where_it_has_none() -> None:
    assert "● running" in drawn(TABLE)
    assert drawn(TABLE, symbols=False).isascii()


def test_without_colour_the_words_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = drawn(TABLE, colour=True)
    assert "\x1b[3" not in text
    assert "running duplicate" in text


def test_every_state_has_a_symbol_and_a_style() -> None:
    assert {*State, *JobState} <= STATES.keys()


def test_an_alarm_goes_before_the_colour_of_the_state() -> None:
    assert state_style("running")[1] == "green"
    assert state_style("running pending")[1] == "green"
    assert state_style("running duplicate")[1] == "bold red"
    assert state_style("") == state_style("somebody's own word")


def test_html_escapes_everything() -> None:
    table = Table(
        "<title>",
        (Column("a", "<A>", Look.NAME), Column("s", "S", Look.STATE)),
        [("<script>alert(1)</script>", '"><b>')],
        notes=["<note>"],
    )
    text = html(table, now=NOW)
    assert "<script>" not in text
    assert "<title>" not in text
    assert "<A>" not in text
    assert "<note>" not in text
    assert "&quot;&gt;&lt;b&gt;" in text


def test_html_has_the_full_time_at_hand() -> None:
    assert 'title="2023-11-14T22:13:08Z">12s<' in html(TABLE, now=NOW)


def test_json_is_the_records_where_there_are_some_else_the_rows() -> None:
    rows = json.loads(as_json(TABLE))
    assert rows[0]["memory"] == 512 * 1024**2
    assert rows[1]["seen"] is None
    table = Table("", TABLE.columns, TABLE.rows, records={"id": "x"})
    assert json.loads(as_json(table)) == {"id": "x"}
    assert as_json(table, indent=0) == '{"id":"x"}\n'


def test_csv_has_full_times_and_plain_sizes() -> None:
    assert as_csv(TABLE).splitlines() == [
        "name,state,memory,tags,seen",
        'web1,running,536870912,"env=prod,tier",2023-11-14T22:13:08Z',
        "a-much-longer-name,running duplicate,1610612736.0,,",
    ]


def test_nothing_that_is_shown_can_move_the_cursor() -> None:
    told = one_line("a\rb\x1b]0;x\x07\u202ec\ud800")
    assert told == "a\\rb\\x1b]0;x\\x07\\u202ec\\ud800"
