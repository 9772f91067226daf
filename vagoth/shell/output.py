"""The one place that draws: results to standard output, what is wrong to standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from vagoth.errors import VagothError
from vagoth.render import as_json, as_rich, one_line, plain, shown_notes, state_style
from vagoth.shell.context import Failure, Line, Result
from vagoth.tables import Table

if TYPE_CHECKING:
    from rich.console import Console


_RED = "31"


class OutputClosed(Exception):
    """Nobody reads standard output any more."""


class OutputFailed(Exception):
    """Standard output cannot be written: it is full, or closed."""


class Output:
    """Draws for whoever reads: rich tables at a terminal, plain columns into a pipe, or JSON.

    :param program: what stands before an error: the program's name; nothing in the shell
    """

    def __init__(
        self,
        *,
        json: bool = False,
        debug: bool = False,
        program: str = "vagoth",
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self.json = json
        self.debug = debug
        self._program = program
        # A process started with a stream closed has none.
        self._out = out if out is not None else sys.stdout
        self._err = err if err is not None else sys.stderr
        for stream in (self._out, self._err):
            if stream is not None and hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        self._console: Console | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads the output."""
        return self._out is not None and self._out.isatty()

    @property
    def console(self) -> Console:
        """The terminal that the output goes to."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(file=self._out, highlight=False, soft_wrap=False)
        return self._console

    async def show(self, result: Result) -> None:
        """Draw a result, to its last line if it is a stream, and report its errors.

        :raises OutputClosed: nobody reads any more
        :raises OutputFailed: it cannot be written
        """
        if result.table is not None:
            self.table(result.table)
        elif result.text:
            self.write(result.text if result.text.endswith("\n") else result.text + "\n")
        if result.lines is not None:
            async for line in result.lines:
                self.line(line)
        for failure in result.failures:
            self.error(failure)

    def table(self, table: Table) -> None:
        """Draw a table."""
        if self.json:
            self.write(as_json(table))
            return
        if self.is_terminal:
            symbols = self.console.encoding.lower().startswith("utf")
            self._draw(as_rich(table, width=self.console.width, symbols=symbols))
            return
        self.write(plain(table, notes=False))
        for note in shown_notes(table):
            self.complain(note)

    def line(self, line: Line) -> None:
        """Draw one line of a stream, at once."""
        if self.json:
            self.write(as_json(line.data, indent=0))
        elif self.is_terminal:
            from rich.text import Text

            self._draw(Text(one_line(line.text), style=state_style(line.state)[1]))
        else:
            self.write(one_line(line.text) + "\n")

    def error(self, failure: BaseException | Failure) -> None:
        """Report what went wrong, in one line; with its traceback where that was asked for."""
        about, error = ("", failure) if isinstance(failure, BaseException) else failure
        if self.debug:
            import traceback

            self._complain("".join(traceback.format_exception(error)))
        if isinstance(error, VagothError):
            told = str(error)
            self.complain(told if about in told else f"{about}: {told}", style=_RED)
        else:
            told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            cure = "" if self.debug else " (--debug shows where)"
            self.complain(f"internal error: {told}{cure}", style=_RED)

    def complain(self, text: str, *, style: str = "") -> None:
        """One line to standard error."""
        line = f"{self._program}: {one_line(text)}" if self._program else one_line(text)
        if (
            style
            and self._err is not None
            and self._err.isatty()
            and not os.environ.get("NO_COLOR")
        ):
            line = f"\x1b[{style}m{line}\x1b[0m"
        self._complain(line + "\n")

    def write(self, text: str) -> None:
        """Text to standard output, there when this returns.

        :raises OutputClosed: nobody reads any more
        :raises OutputFailed: it cannot be written
        """
        with self._writing():
            self._out.write(text)

    def _draw(self, thing: object) -> None:
        with self._writing():
            self.console.print(thing)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if self._out is None:
            raise OutputFailed("standard output is closed")
        try:
            yield
            self._out.flush()
        except BrokenPipeError:
            raise OutputClosed from None
        except OSError as error:
            raise OutputFailed(f"standard output cannot be written: {error.strerror}") from None

    def _complain(self, text: str) -> None:
        if self._err is None:
            return
        try:
            self._err.write(text)
            self._err.flush()
        except OSError:
            # There is nobody left to tell.
            pass


def silence() -> None:
    """Send what Python still holds for a closed standard output nowhere: it then ends quietly."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def errors_of(error: BaseException) -> Sequence[BaseException]:
    """The errors in a group of them, however deep; else the error itself."""
    if isinstance(error, BaseExceptionGroup):
        return [each for inner in error.exceptions for each in errors_of(inner)]
    return [error]
