"""The command line: one command, its output, and an exit code that can be trusted.

Exit codes: 0 done, 1 the action failed, 2 bad usage or input, 3 no such node, 4 conflict,
5 a host could not be used, 6 outcome unknown, 130 interrupted. Several failures have their common
code, else 1. Ended by a signal, or because nobody reads its output, it dies by that signal.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from vagoth.errors import VagothError
from vagoth.shell.context import EXIT_INTERRUPTED, Interrupted, Result, Surroundings, code_of
from vagoth.shell.line import Options
from vagoth.shell.output import Output, OutputClosed, OutputFailed, errors_of, silence
from vagoth.shell.parser import Parsed, parse
from vagoth.shell.runner import run

if TYPE_CHECKING:
    from rich.console import Console

EXIT_USAGE = 2
EXIT_FAILED = 1


def main() -> NoReturn:
    """Run ``vagoth`` with the arguments of this process, and end the process."""
    ended = command_line(sys.argv[1:])
    if ended.signal is not None:
        signal.signal(ended.signal, signal.SIG_DFL)
        os.kill(os.getpid(), ended.signal)
    # All is closed and written by now; to take itself apart costs Python a seventh of a `list`.
    os._exit(ended.code)


def command_line(words: Sequence[str]) -> Ended:
    """Run one command to its end, with its output written; how it ended."""
    # What was imported stays: there is nothing to find in it for the collector.
    gc.freeze()
    flags = words[: words.index("--")] if "--" in words else words
    output = Output(json="--json" in flags, debug="--debug" in flags)
    try:
        return _run(words, output)
    except OutputClosed:
        silence()
        return Ended(0, signal.SIGPIPE)
    except OutputFailed as error:
        silence()
        output.complain(str(error))
        return Ended(EXIT_FAILED)
    except KeyboardInterrupt:
        # Before the loop took over: nothing was begun.
        return Ended(EXIT_INTERRUPTED)


class Ended:
    """How a run ended: its exit code, and the signal to die by, if one ended it."""

    def __init__(self, code: int, signal: signal.Signals | None = None) -> None:
        self.code = code
        self.signal = signal


def _run(words: Sequence[str], output: Output) -> Ended:
    try:
        parsed = parse(words)
        if parsed.options.version:
            output.write(f"vagoth {sys.modules['vagoth'].__version__}\n")
            return Ended(0)
        if parsed.command is None:
            if parsed.options.help:
                parsed = parse(["help"], given=Options(json=parsed.options.json))
            elif _is_interactive():
                parsed = parse(["shell"], given=parsed.options)
            else:
                from vagoth.shell.commands.shell import overview

                sys.stderr.write(overview(in_shell=False))
                return Ended(EXIT_USAGE)
    except VagothError as error:
        output.error(error)
        return Ended(error.exit_code)
    _set_up_logging(parsed.options)
    return asyncio.run(_Run(parsed, output).run())


def _is_interactive() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


def _set_up_logging(options: Options) -> None:
    if options.debug:
        from vagoth.shell.commands.following import log_to_stderr

        log_to_stderr(logging.DEBUG)
    else:
        # What matters is reported by the command itself; without this, warnings come twice.
        logging.getLogger().addHandler(logging.NullHandler())


class _Run:
    """One command, from connecting to its exit code, with signals as they should be."""

    def __init__(self, parsed: Parsed, output: Output) -> None:
        self._parsed = parsed
        self._output = output
        self._surroundings = _surroundings(parsed.options)
        self._task: asyncio.Task[int] | None = None
        self._signal: signal.Signals | None = None

    async def run(self) -> Ended:
        loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._command(), name="command")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._told, number)
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            code = self._task.result()
        elif self._signal is signal.SIGINT:
            self._output.complain("interrupted")
            code = EXIT_INTERRUPTED
        else:
            code = EXIT_FAILED
        if self._signal in (None, signal.SIGINT):
            return Ended(code)
        command = self._parsed.command
        if command is not None and command.ends_when_told:
            return Ended(0)
        return Ended(code, self._signal)

    def _told(self, number: signal.Signals) -> None:
        if number is signal.SIGINT and getattr(self._surroundings, "is_lent", False):
            return
        if self._signal is not None:
            # Told twice, somebody is in a hurry. An action then stays behind as an intent, as it
            # does when the process is killed, and is finished by whoever comes next.
            os._exit(128 + number)
        self._signal = number
        assert self._task is not None
        self._task.cancel()

    async def _command(self) -> int:
        try:
            result = await self._connected()
            return result.code
        except Interrupted as interrupted:
            await self._output.show(interrupted.result)
            self._output.complain("interrupted: this is what is known")
            return EXIT_INTERRUPTED
        except (OutputClosed, OutputFailed):
            raise
        except Exception as error:
            errors = errors_of(error)
            for each in errors:
                self._output.error(each)
            return code_of(errors)

    async def _connected(self) -> Result:
        command, options = self._parsed.command, self._parsed.options
        assert command is not None
        if options.help or not command.needs_cluster or not command.on_command_line:
            result = await run(self._parsed, None, self._surroundings)
            await self._output.show(result)
            return result
        from vagoth.cluster import connect

        async with connect(options.config, store=options.store, sim=options.sim) as cluster:
            result = await run(self._parsed, cluster, self._surroundings)
            await self._output.show(result)
            return result


def _surroundings(options: Options) -> Surroundings:
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
        return Surroundings()
    from vagoth.shell.terminal import Terminal

    return Terminal(None if options.json else _console)


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


if __name__ == "__main__":
    main()
