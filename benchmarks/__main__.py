"""The command line: ``python -m benchmarks [NAMES…] [--hosts N] [--guests N] [--json PATH] …``."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from benchmarks.catalogue import BENCHMARKS, Benchmark
from benchmarks.report import Report, as_data, machine, text
from benchmarks.setting import Options, Setting
from benchmarks.timing import BenchmarkFailed, compare
from tests.lab import Lab, LabError, lab_unavailable
from vagoth.errors import VagothError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; the exit status: 0, 1 if one of them did not work, 130 if told to end."""
    defaults = Options()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Vagoth beside its peers, as ratios."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--hosts", type=_count, default=defaults.hosts, help="of the lab")
    parser.add_argument("--guests", type=_count, default=defaults.guests, help="on each host")
    parser.add_argument("--nodes", type=_count, default=defaults.nodes, help="in the store")
    parser.add_argument("--rounds", type=_count, default=defaults.rounds, help="at most")
    parser.add_argument("--budget", type=float, default=defaults.budget_s, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all single times there")
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.names if name not in BENCHMARKS]:
        parser.error(f"no benchmark {unknown[0]!r}: there are {', '.join(BENCHMARKS)}")
    chosen = [BENCHMARKS[name] for name in args.names or BENCHMARKS]
    options = Options(args.hosts, args.guests, args.nodes, args.rounds, args.budget)
    before = machine()
    sys.stdout.write(
        f"Python {before['python']}, {before['processors']} processors, "
        f"load {before['load'][0]} before\n"
    )
    try:
        reports = asyncio.run(_run(chosen, options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    after = machine()
    sys.stdout.write(f"\nload {after['load'][0]} after\n")
    if args.json is not None:
        data = as_data(reports, {**before, "load_after": after["load"]})
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(data)))
    return 0 if len(reports) == len(chosen) else 1


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected 1 or more")
    return number


async def _run(chosen: Sequence[Benchmark], options: Options) -> list[Report]:
    """Run them one after another, and show each as it is done; those that did not work lack."""
    me = asyncio.current_task()
    assert me is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, me.cancel)
    reports = []
    async with _setting(options) as setting:
        for benchmark in chosen:
            try:
                report = await _report(benchmark, setting)
            except (BenchmarkFailed, VagothError) as error:
                sys.stderr.write(f"{benchmark.name} did not work: {error}\n")
                continue
            reports.append(report)
            sys.stdout.write(f"\n{text(report)}")
            sys.stdout.flush()
    return reports


async def _report(benchmark: Benchmark, setting: Setting) -> Report:
    options = setting.options
    async with benchmark.prepare(setting) as entrants:
        comparison = None
        if any(contender.is_ours for contender in entrants.contenders):
            comparison = await compare(
                entrants.contenders, rounds=options.rounds, budget_s=options.budget_s
            )
        return Report(benchmark, comparison, entrants.left_out, entrants.setting)


@asynccontextmanager
async def _setting(options: Options) -> AsyncIterator[Setting]:
    """A temporary folder, and the lab where there can be one; both gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="vagoth-bench-") as name:
        folder = Path(name)
        reason = lab_unavailable()
        if reason is not None:
            yield Setting(folder, options, reason)
            return
        lab = Lab(options.hosts)
        try:
            await lab.__aenter__()
        except LabError as error:
            yield Setting(folder, options, f"the lab did not come up: {error}")
            return
        try:
            yield Setting(folder, options, lab)
        finally:
            await lab.close()


if __name__ == "__main__":
    sys.exit(main())
