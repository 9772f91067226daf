"""The interactive shell: one prompt, the commands of the command line, and events as they come."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.styles import Style

from vagoth.errors import InvalidInput, VagothError
from vagoth.model import Commit
from vagoth.shell.commits import commit_lines
from vagoth.shell.completer import LineCompleter
from vagoth.shell.completion import World
from vagoth.shell.context import Interrupted, Line, Result
from vagoth.shell.line import Options, split
from vagoth.shell.output import Output, errors_of
from vagoth.shell.parser import parse
from vagoth.shell.runner import run
from vagoth.shell.terminal import Terminal
from vagoth.shell.toolbar import toolbar

if TYPE_CHECKING:
    from prompt_toolkit.formatted_text import StyleAndTextTuples

    from vagoth.cluster import Cluster
    from vagoth.scheduler import Job

PROMPT = "vagoth> "
#: More lines than this at once are counted, not shown.
_EVENTS_AT_ONCE = 8
_OWN_KEPT = 100
_STYLE = Style.from_dict(
    {
        "bottom-toolbar": "noreverse bg:#303030 #d0d0d0",
        "toolbar.bad": "bold #ff8787",
        "toolbar.busy": "bold #87d7ff",
        "prompt": "bold",
    }
)


async def run_shell(options: Options, *, greeting: Sequence[str] = ()) -> int:
    """Open the shell, and return its exit code when it is left.

    :param options: global options: those that say what to connect to, and defaults for each line
    :param greeting: lines shown before the first prompt
    :raises InvalidInput: there is no terminal
    """
    import sys

    from vagoth.cluster import connect

    if not (sys.stdin and sys.stdin.isatty() and sys.stdout and sys.stdout.isatty()):
        raise InvalidInput("shell", None, "", message="the shell needs a terminal")
    async with connect(options.config, store=options.store, sim=options.sim) as cluster:
        return await Shell(cluster, options).run(greeting)


class Shell:
    """A prompt over a cluster. A command that fails, or is interrupted, leaves it working."""

    def __init__(self, cluster: Cluster, options: Options) -> None:
        self._cluster = cluster
        self._options = options
        self._output = Output(debug=options.debug, program="")
        self._terminal = Terminal(lambda: self._output.console, in_shell=True)
        # What our own lines did they told themselves; events are about what others do.
        self._own: deque[str] = deque(maxlen=_OWN_KEPT)
        self._is_streaming = False
        completer = LineCompleter(_world(cluster))
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            completer=completer,
            key_bindings=completer.bindings(),
            complete_while_typing=True,
            auto_suggest=AutoSuggestFromHistory(),
            history=_history(cluster.config.state_dir),
            bottom_toolbar=self._toolbar,
            reserve_space_for_menu=6,
            style=_STYLE,
            # Which of the two ways to end a prompt it was matters; see run.
            interrupt_exception=KeyboardInterrupt,
        )

    async def run(self, greeting: Sequence[str] = ()) -> int:
        """Prompt until it is left; 0."""
        for line in greeting:
            self._output.line(Line(line, None))
        following = asyncio.create_task(self._tell(), name="events of the shell")
        stop_listening = self._cluster.scheduler.on_end(self._on_job_end)
        try:
            while True:
                try:
                    line = await self._session.prompt_async()
                except KeyboardInterrupt:
                    continue
                except EOFError:
                    return 0
                if await self._line(line):
                    return 0
        finally:
            stop_listening()
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following

    # --- one line -------------------------------------------------------------------------

    async def _line(self, line: str) -> bool:
        """Run a line; whether it was the last."""
        task = asyncio.create_task(self._command(line), name=line)
        with _interrupting(task, self._terminal, self._output):
            await asyncio.wait([task])
        return not task.cancelled() and task.result()

    async def _command(self, line: str) -> bool:
        try:
            words = split(line)
            if not words:
                return False
            result = await self._result(words)
            await self._show(result)
            return result.leave
        except Interrupted as interrupted:
            await self._show(interrupted.result)
            self._output.complain("interrupted: this is what is known")
        except asyncio.CancelledError:
            self._output.complain("interrupted")
        except Exception as error:
            for each in errors_of(error):
                self._output.error(each)
        return False

    async def _result(self, words: Sequence[str]) -> Result:
        given = Options(debug=self._options.debug, json=self._options.json)
        parsed = parse(words, given=given)
        for flag in ("config", "store", "sim"):
            if getattr(parsed.options, flag) is not None:
                raise InvalidInput(
                    f"--{flag}", None, "", message=f"--{flag} is for the start of the shell"
                )
        if parsed.command is None:
            parsed = parse(["help"])
        self._output.json = parsed.options.json
        self._output.debug = parsed.options.debug
        return await run(parsed, self._cluster, self._terminal, on_transaction=self._own.append)

    async def _show(self, result: Result) -> None:
        self._is_streaming = result.lines is not None
        try:
            await self._output.show(result)
        finally:
            self._is_streaming = False

    # --- what is going on -------------------------------------------------------------------

    async def _tell(self) -> None:
        """Show what happens to nodes by other hands, above the prompt; hosts are followed."""
        while True:
            try:
                async with self._cluster.watch() as commits:
                    async for commit in commits:
                        await self._on_commit(commit)
                return
            except VagothError as error:
                # Some commits were missed, not the view: go on from here.
                await self._above([Line(f"events: {error}", None)])
                await asyncio.sleep(1)

    async def _on_commit(self, commit: Commit) -> None:
        self._redraw()
        if self._is_streaming or commit.txid in self._own:
            return
        lines = list(commit_lines(commit, self._cluster.view, only_life=True))
        if len(lines) > _EVENTS_AT_ONCE:
            more = len(lines) - _EVENTS_AT_ONCE
            lines = [*lines[:_EVENTS_AT_ONCE], Line(f"… and {more} more", None)]
        await self._above(lines)

    def _on_job_end(self, job: Job) -> None:
        self._redraw()
        if job.txid not in self._own and job.error is not None:
            line = Line(f"{job.action} {job.node}: {job.state}: {job.error}", None, job.state)
            self._later = asyncio.ensure_future(self._above([line]))

    async def _above(self, lines: Sequence[Line]) -> None:
        def draw() -> None:
            for line in lines:
                self._output.line(line)

        if not lines:
            return
        was_json, self._output.json = self._output.json, False
        try:
            if self._session.app.is_running:
                await run_in_terminal(draw)
            else:
                draw()
        finally:
            self._output.json = was_json

    def _redraw(self) -> None:
        if self._session.app.is_running:
            self._session.app.invalidate()

    def _toolbar(self) -> StyleAndTextTuples:
        width = self._session.app.output.get_size().columns
        jobs = self._cluster.scheduler.active()
        return [*toolbar(self._cluster.registry.location, self._cluster.view, jobs, width=width)]


def _world(cluster: Cluster) -> World:
    """What completion reads: the live view, and names that do not change while a shell is open."""

    def definition_type(name: str, draft: Any) -> Any:
        return cluster.types.get(name, field="--type").definition_type(draft, cluster)

    return World(
        cluster.view,
        types=cluster.types.names(),
        drivers=cluster.drivers.names(),
        definition_type=definition_type,
    )


class _interrupting:
    """Ctrl-C cancels the task, once: what it began it must see to its end, within seconds."""

    def __init__(self, task: asyncio.Task[Any], terminal: Terminal, output: Output) -> None:
        self._task = task
        self._terminal = terminal
        self._output = output
        self._times = 0

    def __enter__(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)

    def __exit__(self, *_exc: object) -> None:
        # Between lines the prompt reads Ctrl-C as a key; a late signal must not end the shell.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)

    def _interrupt(self) -> None:
        if self._terminal.is_lent:
            return
        self._times += 1
        if self._times == 1:
            self._task.cancel()
        elif self._times == 2:
            self._output.complain("finding out what is true; a few seconds at most")


def _history(folder: Path) -> History:
    """The lines typed, kept for this user and this store; for this session if they cannot be.

    What was played with in one cluster must not come up as a suggestion in another.
    """
    path = folder / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return _FileHistory(path)


class _FileHistory(FileHistory):
    """Keeps no line that begins with a blank, as shells do."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)

    def store_string(self, string: str) -> None:
        if string.strip() and not string.startswith(" "):
            with suppress(OSError):
                super().store_string(string)
