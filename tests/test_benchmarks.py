"""The harness of the benchmarks: turns, arithmetic, reports. No figure is judged here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import benchmarks.__main__ as command_line
from benchmarks.catalogue import BENCHMARKS, Benchmark, Entrants
from benchmarks.programs import command, kept_open
from benchmarks.report import Report, as_data, table, text
from benchmarks.setting import Options, Setting, full_store
from benchmarks.timing import BenchmarkFailed, Comparison, Contender, Spread, Timing, compare
from vagoth import connect

NO_LAB = "no lab in this test"


def scripted(name: str, *seconds: float, turns: list[str], is_ours: bool = False) -> Contender:
    """One that claims these times, and notes its turns."""
    times: Iterator[float] = iter(seconds)

    async def run() -> float:
        turns.append(name)
        return next(times)

    return Contender(name, f"run {name}", run, is_ours)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path, Options(nodes=100, rounds=3), NO_LAB)


async def test_contenders_take_turns_and_the_first_does_not_count() -> None:
    turns: list[str] = []
    ours = scripted("ours", 99, 1, 2, 6, turns=turns, is_ours=True)
    peer = scripted("peer", 99, 2, 8, 3, turns=turns)
    comparison = await compare([ours, peer], rounds=3)
    assert turns == ["ours", "peer"] * 4
    [own], [other] = comparison.ours, comparison.peers
    assert comparison.rounds == 3
    assert own.spread == Spread(2, 1, 6)
    assert other.spread == Spread(3, 2, 8)


async def test_a_ratio_is_taken_within_each_round() -> None:
    """The ratio of the medians would be 2/3: other rounds, another load on the machine."""
    turns: list[str] = []
    ours = scripted("ours", 99, 1, 2, 6, turns=turns, is_ours=True)
    peer = scripted("peer", 99, 2, 8, 3, turns=turns)
    comparison = await compare([ours, peer], rounds=3)
    assert comparison.ours[0].ratio_to(comparison.peers[0]) == Spread(0.5, 0.25, 2)


async def test_rounds_end_with_the_time_but_not_before_three() -> None:
    turns: list[str] = []
    one = scripted("one", *range(20), turns=turns)
    assert (await compare([one], rounds=19, budget_s=0)).rounds == 3


async def test_commands_are_run_to_their_end_with_their_output_read(setting: Setting) -> None:
    long = f"{sys.executable} -c 'print(\"x\" * 1000000)'"
    shell = command("long", ["sh", "-c", long], env=setting.env, is_ours=True)
    none = command("none", ["true"], env=setting.env)
    comparison = await compare([shell, none], rounds=3)
    assert all(len(timing.seconds) == 3 for timing in comparison.timings)
    assert all(seconds > 0 for timing in comparison.timings for seconds in timing.seconds)


async def test_a_command_that_fails_is_no_figure(setting: Setting) -> None:
    broken = command("broken", ["sh", "-c", "echo why >&2; exit 3"], env=setting.env)
    with pytest.raises(BenchmarkFailed, match=r"(?s)broken: .*status 3.*why"):
        await compare([broken], rounds=3)


async def test_what_is_kept_open_times_its_rounds_and_ends(setting: Setting) -> None:
    config = setting.folder / "vagoth.toml"
    config.write_text(f'[store]\npath = "{setting.folder / "store.json"}"\n')
    env = setting.env
    async with kept_open(
        "warm", "benchmarks.warm_vagoth", [str(config)], env=env, shown="warm"
    ) as warm:
        comparison = await compare([warm], rounds=3)
    assert comparison.rounds == 3


@pytest.mark.parametrize(
    ("module", "problem"), [("benchmarks.rounds", "ended"), ("this", "said .* and no time")]
)
async def test_what_does_not_answer_with_a_time_is_no_figure(
    setting: Setting, module: str, problem: str
) -> None:
    with pytest.raises(BenchmarkFailed, match=f"odd: {module} {problem}"):
        async with kept_open("odd", module, [], env=setting.env, shown="odd") as odd:
            await compare([odd], rounds=3)


def test_contenders_know_neither_the_users_settings_nor_pythons(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Python that writes no bytecode would compile in each round what was changed since."""
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONDEVMODE", "VAGOTH_CONFIG", "SSH_AUTH_SOCK"):
        monkeypatch.setenv(name, "1")
        assert name not in setting.env
    for name in ("HOME", "XDG_STATE_HOME", "PYTHONPYCACHEPREFIX"):
        assert Path(setting.env[name]).parent == setting.folder
    assert setting.env["PATH"] == os.environ["PATH"]


async def test_the_store_has_the_nodes_that_were_asked_for(tmp_path: Path) -> None:
    await full_store(tmp_path / "store.json", 120)
    async with connect(store=tmp_path / "store.json") as cluster:
        assert len(cluster) == 120
        hosts = cluster.nodes(type="hv")
        assert sum(len(cluster.nodes(parent=host)) for host in hosts) == 120 - len(hosts)


def test_every_benchmark_is_registered_and_run_by_default() -> None:
    assert {*BENCHMARKS} == {"list", "poll", "store", "store-lookup", "store-open"}
    assert all(name == benchmark.name for name, benchmark in BENCHMARKS.items())


@pytest.mark.parametrize("name", ["list", "poll"])
async def test_without_a_lab_what_needs_it_is_named_with_the_reason(
    name: str, setting: Setting
) -> None:
    async with BENCHMARKS[name].prepare(setting) as entrants:
        assert set(entrants.left_out.values()) == {NO_LAB}
        taking_part = {contender.name for contender in entrants.contenders}
        assert not taking_part & {*entrants.left_out}
        report = Report(BENCHMARKS[name], None, entrants.left_out)
        assert all(f"left out: {each} ({NO_LAB})" in text(report) for each in entrants.left_out)


async def test_the_store_is_measured_beside_its_peers_at_each_size(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.store.SIZES", (60, 120))
    for name, peers in (("store", 5), ("store-lookup", 4), ("store-open", 5)):
        async with BENCHMARKS[name].prepare(setting) as entrants:
            assert not entrants.left_out
            assert len(entrants.contenders) == peers * 2
            assert [each.name for each in entrants.contenders if each.is_ours] == ["vagoth 120"]
            for contender in entrants.contenders:
                assert await contender.run() > 0
        if name == "store":
            assert "of 100 times" in entrants.setting
    assert "bytes each on disk" in entrants.setting


def test_a_report_shows_each_ratio_and_keeps_each_time() -> None:
    turns: list[str] = []
    ours = Timing(scripted("ours", turns=turns, is_ours=True), [0.5, 0.25, 0.375])
    peer = Timing(scripted("peer", turns=turns), [0.125, 0.25, 0.25])
    report = Report(BENCHMARKS["list"], Comparison([ours, peer]), {"third": "not here"}, "2 nodes")
    rows = {row[0]: row for row in table(report).rows}
    assert rows["ours"][1:4] == ("375 ms", "250–500", None)
    assert rows["peer"][1:4] == ("250 ms", "125–250", "1.50 (1.00–4.00)")
    assert "(2 nodes, 3 rounds)" in text(report)
    [data] = as_data([report], {})["benchmarks"]
    assert data["timings"][0]["seconds"] == [0.5, 0.25, 0.375]
    assert data["ratios"] == [{"of": "ours", "to": "peer", "median": 1.5, "min": 1.0, "max": 4.0}]
    assert data["left_out"] == {"third": "not here"}


@pytest.fixture
def trivial(monkeypatch: pytest.MonkeyPatch) -> None:
    """One benchmark only, of two commands that do nothing; one that fails; and no lab."""

    @asynccontextmanager
    async def pair(setting: Setting) -> AsyncIterator[Entrants]:
        ours = command("ours", ["true"], env=setting.env, is_ours=True)
        yield Entrants([ours, command("peer", ["true"], env=setting.env)], {"third": NO_LAB})

    @asynccontextmanager
    async def failing(setting: Setting) -> AsyncIterator[Entrants]:
        yield Entrants([command("ours", ["false"], env=setting.env, is_ours=True)])

    prepared = {"pair": pair, "failing": failing}
    monkeypatch.setattr(Benchmark, "prepare", lambda self, setting: prepared[self.name](setting))
    for name in (*BENCHMARKS,):
        monkeypatch.delitem(BENCHMARKS, name)
    for name in prepared:
        monkeypatch.setitem(BENCHMARKS, name, Benchmark(name, f"a {name}", ""))
    monkeypatch.setattr(command_line, "lab_unavailable", lambda: NO_LAB)


@pytest.mark.usefixtures("trivial")
def test_the_command_line_prints_tables_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    assert command_line.main(["pair", "--rounds", "3", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "pair: a pair (3 rounds)" in shown
    assert f"left out: third ({NO_LAB})" in shown
    data = json.loads(path.read_text())
    assert data["machine"]["processors"] == os.cpu_count()
    assert [each["name"] for each in data["benchmarks"]] == ["pair"]


@pytest.mark.usefixtures("trivial")
def test_one_that_does_not_work_is_told_and_stops_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command_line.main(["failing", "pair", "--rounds", "3"]) == 1
    shown = capsys.readouterr()
    assert "failing did not work: ours: false: exit status 1" in shown.err
    assert "pair: a pair (3 rounds)" in shown.out


def test_a_benchmark_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main(["lisst"])
    assert ended.value.code == 2
    assert "there are list, poll" in capsys.readouterr().err
