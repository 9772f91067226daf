"""What was measured, as a table to read and as data to keep."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.catalogue import Benchmark
from benchmarks.timing import Comparison, Spread
from vagoth.render import plain
from vagoth.tables import Column, Look, Table


@dataclass(frozen=True)
class Report:
    """One benchmark's outcome: what was compared, if anything; what was left out, and why."""

    benchmark: Benchmark
    comparison: Comparison | None
    left_out: Mapping[str, str]
    setting: str = ""


def table(report: Report) -> Table:
    """One row for each contender; for each of Vagoth's own a column with its ratio to the peer."""
    comparison = report.comparison
    notes = [f"left out: {name} ({reason})" for name, reason in report.left_out.items()]
    if comparison is None:
        return Table(_title(report), (Column("name", "WHAT"),), [], notes=notes)
    ours = comparison.ours
    columns = [
        Column("name", "WHAT", Look.NAME),
        Column("median_s", "MEDIAN", Look.NUMBER),
        Column("range_s", "MIN–MAX", Look.NUMBER),
        *(
            Column(f"ratio_{n}", f"{timing.contender.name} ÷ IT", Look.NUMBER)
            for n, timing in enumerate(ours)
        ),
        Column("command", "COMMAND"),
    ]
    rows = []
    for timing in comparison.timings:
        ratios = [
            None if timing.contender.is_ours else _ratio(own.ratio_to(timing)) for own in ours
        ]
        spread = timing.spread
        span = f"{_ms(spread.low)}–{_ms(spread.high)}"
        each = timing.contender
        rows.append((each.name, f"{_ms(spread.median)} ms", span, *ratios, each.command))
    return Table(_title(report), columns, rows, notes=notes)


def _title(report: Report) -> str:
    about = [report.setting] if report.setting else []
    if report.comparison is not None:
        about.append(f"{report.comparison.rounds} rounds")
    return f"{report.benchmark.name}: {report.benchmark.title}" + (
        f" ({', '.join(about)})" if about else ""
    )


def _ms(seconds: float) -> str:
    places = 0 if seconds >= 0.1 else 1 if seconds >= 0.001 else 2 if seconds >= 0.0001 else 4
    return f"{seconds * 1000:.{places}f}"


def _ratio(ratio: Spread) -> str:
    return f"{_short(ratio.median)} ({_short(ratio.low)}–{_short(ratio.high)})"


def _short(number: float) -> str:
    """Three digits that say something, at most; what is very small as a fraction."""
    if 0 < number < 0.01:
        return f"1/{1 / number:,.0f}"
    places = 0 if number >= 100 else 1 if number >= 10 else 2 if number >= 0.1 else 3
    return f"{number:.{places}f}"


def text(report: Report) -> str:
    """The table under its title."""
    drawn = table(report)
    body = plain(drawn) if drawn.rows else "".join(f"{note}\n" for note in drawn.notes)
    return f"{drawn.title}\n{body}"


def machine() -> dict[str, Any]:
    """What the figures were measured on, and how busy it was with other things."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def as_data(reports: Sequence[Report], machine: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, with every single time, in seconds."""
    return {"machine": machine, "benchmarks": [_data(report) for report in reports]}


def _data(report: Report) -> dict[str, Any]:
    comparison = report.comparison
    timings = comparison.timings if comparison else ()
    return {
        "name": report.benchmark.name,
        "title": report.benchmark.title,
        "setting": report.setting,
        "left_out": dict(report.left_out),
        "timings": [
            {
                "name": timing.contender.name,
                "command": timing.contender.command,
                "is_ours": timing.contender.is_ours,
                "median_s": timing.spread.median,
                "min_s": timing.spread.low,
                "max_s": timing.spread.high,
                "seconds": list(timing.seconds),
            }
            for timing in timings
        ],
        "ratios": [
            {
                "of": own.contender.name,
                "to": peer.contender.name,
                "median": (ratio := own.ratio_to(peer)).median,
                "min": ratio.low,
                "max": ratio.high,
            }
            for own in (comparison.ours if comparison else ())
            for peer in (comparison.peers if comparison else ())
        ],
    }
