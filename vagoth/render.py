"""Draws tables: for terminals, pipes, notebooks, and programs.

One :class:`~vagoth.tables.Table` goes in, and the words, symbols and units that come out mean
the same in each form. Into a pipe go plain columns, without rich.
"""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from vagoth.tables import Column, Look, Table

if TYPE_CHECKING:
    from rich.console import RenderableType

NOTHING = "-"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_GAP = "  "
_NOTES = 10

#: Symbol and rich style of each state, the same in every table, line and toolbar.
STATES: Mapping[str, tuple[str, str]] = {
    "new": ("·", "dim"),
    "defined": ("◌", "dim"),
    "running": ("●", "green"),
    "paused": ("◐", "yellow"),
    "stopped": ("○", "default"),
    "crashed": ("✖", "bold red"),
    "starting": ("↻", "cyan"),
    "stopping": ("↻", "cyan"),
    "migrating": ("↻", "cyan"),
    "unknown": ("?", "bold magenta"),
    "missing": ("!", "bold red"),
    "up": ("●", "green"),
    "unreachable": ("✖", "bold red"),
    "unseen": ("·", "dim"),
    # jobs, checks and outcomes
    "waiting": ("·", "dim"),
    "done": ("✔", "green"),
    "ok": ("✔", "green"),
    "failed": ("✖", "bold red"),
    "cancelled": ("○", "yellow"),
}
_ALARMS = {"duplicate"}
_ALARM_STYLE = "bold red"


# --- one value as text ------------------------------------------------------------------


def one_line(text: str) -> str:
    """``text`` with whatever could move a terminal's cursor or break a row written out."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def size(value: float) -> str:
    """Bytes in binary units, written as definitions accept them: ``512MiB``, ``1.5GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + unit


def ago(then: float, now: float | None = None) -> str:
    """How long ago ``then`` was, in its largest unit: ``12s``, ``5m``, ``3h``, ``8d``."""
    seconds = (time.time() if now is None else now) - then
    sign, seconds = ("in ", -seconds) if seconds <= -1 else ("", max(seconds, 0.0))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{sign}{int(seconds // length)}{unit}"
    return f"{sign}{int(seconds)}s"


def absolute(then: float) -> str:
    """A time in full, in UTC: ``2024-05-01T12:30:00Z``."""
    return datetime.fromtimestamp(then, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def cell(value: Any, look: Look, now: float | None = None) -> str:
    """A value as it stands in a table; nothing is ``-``."""
    if value is None or value == "" or (isinstance(value, list | tuple | dict) and not value):
        return NOTHING
    if look is Look.TIME and isinstance(value, int | float):
        return ago(value, now) if value else NOTHING
    if look is Look.BYTES and isinstance(value, int | float):
        return size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    if isinstance(value, Mapping):
        return one_line(
            ",".join(f"{key}={item}" if item != "" else f"{key}" for key, item in value.items())
        )
    if isinstance(value, list | tuple):
        return one_line(",".join(str(item) for item in value))
    return one_line(str(value))


def state_style(text: str) -> tuple[str, str]:
    """Symbol and rich style for a state, whose first word counts; plain for others' words.

    An alarm beside the state (``running duplicate``) goes before its colour.
    """
    words = text.split()
    symbol, style = STATES.get(words[0] if words else "", ("•", "default"))
    return symbol, _ALARM_STYLE if _ALARMS & {*words[1:]} else style


def _width(text: str) -> int:
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) != 0 for char in text)


def _texts(table: Table, now: float | None) -> list[list[str]]:
    now = time.time() if now is None else now
    looks = [column.look for column in table.columns]
    return [
        [cell(value, look, now) for value, look in zip(row, looks, strict=True)]
        for row in table.rows
    ]


def shown_notes(table: Table) -> list[str]:
    """The notes below a table; of very many the first, and how many more there are."""
    notes = [one_line(note) for note in table.notes[:_NOTES]]
    more = len(table.notes) - len(notes)
    return [*notes, f"… and {more} more notes"] if more else notes


def _is_right(column: Column) -> bool:
    return column.look in (Look.NUMBER, Look.BYTES, Look.TIME)


# --- whole tables -----------------------------------------------------------------------


def plain(table: Table, *, notes: bool = True, now: float | None = None) -> str:
    """Aligned columns under their titles, one line a row, nothing cut off; ends in a newline.

    For pipes and ``repr``: no colours, no symbols. An empty table is its titles alone.
    """
    rows = _texts(table, now)
    titles = [column.title for column in table.columns]
    widths = [max(map(_width, texts)) for texts in zip(titles, *rows, strict=True)]
    right = [_is_right(column) for column in table.columns]
    lines = []
    for row in (titles, *rows):
        padded = []
        for text, width, to_right in zip(row, widths, right, strict=True):
            blank = " " * (width - _width(text))
            padded.append(blank + text if to_right else text + blank)
        lines.append(_GAP.join(padded).rstrip())
    if notes:
        lines += shown_notes(table)
    return "\n".join(lines) + "\n"


def as_rich(
    table: Table, *, width: int | None = None, symbols: bool = True, now: float | None = None
) -> RenderableType:
    """The table for a :class:`rich.console.Console`.

    :param width: of the terminal, in columns; columns of the greatest weight are left out until
        the rest fits, and a note says which
    :param symbols: whether states carry their symbol: not where the terminal has no Unicode
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    rows = _texts(table, now)
    kept = _that_fit(table.columns, rows, width, symbols)
    drawn = RichTable(
        title=Text(one_line(table.title), style="bold") if table.title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD if symbols else box.ASCII2,
        pad_edge=False,
        header_style="bold",
    )
    for index in kept:
        column = table.columns[index]
        drawn.add_column(
            Text(column.title),
            justify="right" if _is_right(column) else "left",
            no_wrap=column.look is not Look.TEXT and column.look is not Look.LIST,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*(_rich_cell(row[i], table.columns[i].look, symbols) for i in kept))
    left_out = [column.title for i, column in enumerate(table.columns) if i not in kept]
    notes = shown_notes(table)
    if left_out:
        notes.append(f"too narrow for: {', '.join(left_out)}")
    return Group(drawn, *(Text(note, style="dim") for note in notes))


def _that_fit(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None, symbols: bool
) -> list[int]:
    kept = list(range(len(columns)))
    if width is None:
        return kept
    needed = [
        max(_width(column.title), *(_width(row[i]) for row in rows), 1)
        + (2 if column.look is Look.STATE and symbols else 0)
        for i, column in enumerate(columns)
    ]
    # Text can be folded: a column of it asks for no more than a third of the terminal.
    for i, column in enumerate(columns):
        if column.look in (Look.TEXT, Look.LIST):
            needed[i] = min(needed[i], max(width // 3, 12))
    while len(kept) > 1 and sum(needed[i] for i in kept) + 3 * len(kept) - 1 > width:
        heaviest = max(kept, key=lambda i: (columns[i].weight, i))
        if columns[heaviest].weight == 0:
            break
        kept.remove(heaviest)
    return kept


def _rich_cell(text: str, look: Look, symbols: bool) -> RenderableType:
    from rich.text import Text

    if text == NOTHING:
        return Text(text, style="dim")
    if look is Look.STATE:
        symbol, style = state_style(text)
        return Text(f"{symbol} {text}" if symbols else text, style=style)
    if look is Look.NAME:
        return Text(text, style="bold")
    return Text(text)


_HTML_COLOURS = {
    "green": "#1a7f37",
    "yellow": "#9a6700",
    "red": "#cf222e",
    "cyan": "#0a7ea4",
    "magenta": "#8250df",
}


def html(table: Table, *, now: float | None = None) -> str:
    """The table for a notebook; every value is escaped, and times show the full one on hover."""
    from html import escape

    rows = _texts(table, now)
    parts = ['<table class="vagoth">']
    if table.title:
        parts.append(f"<caption>{escape(one_line(table.title))}</caption>")
    titles = "".join(f"<th>{escape(column.title)}</th>" for column in table.columns)
    parts.append(f"<thead><tr>{titles}</tr></thead><tbody>")
    for row, values in zip(rows, table.rows, strict=True):
        cells = zip(row, values, table.columns, strict=True)
        parts.append("<tr>" + "".join(_html_cell(*each) for each in cells) + "</tr>")
    parts.append("</tbody></table>")
    parts += [f"<div><small>{escape(note)}</small></div>" for note in shown_notes(table)]
    return "".join(parts)


def _html_cell(text: str, value: Any, column: Column) -> str:
    from html import escape

    style = "text-align:right" if _is_right(column) else "text-align:left"
    title = ""
    shown = escape(text)
    if column.look is Look.STATE and text != NOTHING:
        symbol, named = state_style(text)
        colour = _HTML_COLOURS.get(named.split()[-1])
        style += f";color:{colour}" if colour else ""
        shown = f"{symbol} {shown}"
    elif column.look is Look.TIME and text != NOTHING:
        title = f' title="{absolute(value)}"'
    elif column.look is Look.NAME:
        shown = f"<b>{shown}</b>"
    return f'<td style="{style}"{title}>{shown}</td>'


def as_data(table: Table) -> Any:
    """What ``--json`` prints, as plain data: the table's records, else a mapping for each row."""
    if table.records is not None:
        return table.records
    keys = [column.key for column in table.columns]
    return [dict(zip(keys, row, strict=True)) for row in table.rows]


def as_json(data: Any, *, indent: int = 2) -> str:
    """Plain data, or a table, as JSON text; ends in a newline.

    :param indent: blanks for each level; 0 for one line
    """
    import msgspec

    if isinstance(data, Table):
        data = as_data(data)
    text = msgspec.json.encode(data, enc_hook=str)
    if indent:
        text = msgspec.json.format(text, indent=indent)
    return text.decode() + "\n"


def as_csv(table: Table) -> str:
    """Comma-separated values under the columns' keys: times in full, sizes in bytes."""
    import csv
    import io

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(column.key for column in table.columns)
    for row in table.rows:
        pairs = zip(row, table.columns, strict=True)
        writer.writerow(_csv_cell(value, column.look) for value, column in pairs)
    return out.getvalue()


def _csv_cell(value: Any, look: Look) -> Any:
    if value is None:
        return ""
    if look is Look.TIME and isinstance(value, int | float):
        return absolute(value) if value else ""
    if look is Look.BYTES or isinstance(value, int | float):
        return value
    text = cell(value, look)
    return "" if text == NOTHING else text
