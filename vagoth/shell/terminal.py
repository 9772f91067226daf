"""A person at a terminal: progress to look at, questions, an editor."""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vagoth.errors import InvalidInput, VagothError
from vagoth.render import one_line, state_style
from vagoth.shell.context import Surroundings

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from vagoth.scheduler import Job

#: Jobs that end sooner are not worth a flicker.
_PROGRESS_AFTER_S = 0.4
_LINES = 10


class Terminal(Surroundings):
    """Asks and shows at a terminal.

    :param console: gives what progress is drawn on; nothing: it is not drawn
    :param in_shell: whether the shell's prompt comes after the command
    """

    is_interactive = True

    def __init__(self, console: Callable[[], Console] | None, *, in_shell: bool = False) -> None:
        self._console = console
        self.in_shell = in_shell
        #: Whether Ctrl-C is meant for somebody else now.
        self.is_lent = False

    def progress(self, jobs: Sequence[Job]) -> AbstractContextManager[Any]:
        if self._console is None or not jobs:
            return super().progress(jobs)
        return _Progress(self._console, jobs)

    async def confirm(self, question: str) -> bool:
        from prompt_toolkit import PromptSession

        self.is_lent = True
        try:
            answer = await PromptSession[str]().prompt_async(f"{question} [y/N] ")
        except (KeyboardInterrupt, EOFError):
            return False
        finally:
            self.is_lent = False
        return answer.strip().lower() in ("y", "yes")

    async def edit(self, text: str, *, suffix: str) -> str:
        """Let the person edit a text, in a private file that is removed afterwards.

        :raises VagothError: the editor cannot be run, or failed; the text is as it was
        """
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
        with tempfile.TemporaryDirectory(prefix="vagoth-edit-") as folder:
            path = Path(folder) / f"definition{suffix}"
            path.write_text(text, encoding="utf-8")
            self.is_lent = True
            try:
                process = await asyncio.create_subprocess_exec(*shlex.split(editor), str(path))
                code = await process.wait()
            except (OSError, ValueError) as error:
                raise InvalidInput(
                    "EDITOR", editor, "", message=f"the editor {editor!r} cannot be run: {error}"
                ) from None
            finally:
                self.is_lent = False
            if code != 0:
                raise VagothError(f"{editor} ended with exit code {code}: nothing was changed")
            return path.read_text(encoding="utf-8")


class _Progress:
    """Jobs drawn below the last line while they run; gone when they are over."""

    def __init__(self, console: Callable[[], Console], jobs: Sequence[Job]) -> None:
        self._console = console
        self._jobs = jobs
        self._live: Any = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_PROGRESS_AFTER_S, self._begin)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._live is not None:
            self._live.stop()

    def _begin(self) -> None:
        from rich.live import Live

        self._live = Live(
            get_renderable=self._draw, console=self._console(), transient=True, refresh_per_second=8
        )
        self._live.start()

    def _draw(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 1))
        unfinished = [job for job in self._jobs if not job.is_over]
        for job in unfinished[:_LINES]:
            symbol, style = state_style(job.state)
            done = f"{job.fraction:.0%}" if job.fraction is not None else ""
            grid.add_row(
                Text(symbol, style=style),
                Text(job.action),
                Text(job.node, style="bold"),
                Text(done),
                Text(one_line(job.step or job.state), style="dim", overflow="ellipsis"),
            )
        over = len(self._jobs) - len(unfinished)
        if len(self._jobs) > 1:
            grid.add_row("", "", Text(f"{over} of {len(self._jobs)} over", style="dim"))
        return grid
