"""What commands are given, and what they hand back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from vagoth.errors import InvalidInput, VagothError
from vagoth.shell.line import Options
from vagoth.tables import Table

if TYPE_CHECKING:
    from vagoth.cluster import Cluster
    from vagoth.scheduler import Job

EXIT_INTERRUPTED = 130


class Line(msgspec.Struct, frozen=True):
    """One line of a stream: for people, in the style of a state; and as data for ``--json``."""

    text: str
    data: Any
    state: str = ""


class Failure(NamedTuple):
    """What went wrong, and with which node (by name), where that is not the whole command."""

    about: str
    error: BaseException


class Result(msgspec.Struct, frozen=True):
    """What a command found or did.

    :param table: what is drawn, and printed by ``--json``
    :param text: what is printed as it stands, where there is no table
    :param failures: what failed: reported one by one, and deciding the exit code
    :param exit_code: where no error decides it
    :param lines: a stream, printed line by line until it ends or is interrupted
    :param leave: whether the shell is to be left
    """

    table: Table | None = None
    text: str = ""
    failures: Sequence[Failure] = ()
    exit_code: int = 0
    lines: AsyncIterator[Line] | None = None
    leave: bool = False

    @property
    def code(self) -> int:
        """The exit code: that of all failures if they have one in common, else 1."""
        errors = [failure.error for failure in self.failures]
        return code_of(errors) if errors else self.exit_code


def code_of(errors: Sequence[BaseException]) -> int:
    """The exit code of several failures: the one they have in common, else 1."""
    codes = {error.exit_code if isinstance(error, VagothError) else 1 for error in errors}
    return codes.pop() if len(codes) == 1 else 1


class Interrupted(Exception):
    """A command was cancelled; ``result`` is what is known of its outcome."""

    def __init__(self, result: Result) -> None:
        super().__init__("interrupted")
        self.result = result


class Surroundings:
    """What a command may ask of whoever runs it, besides data: the defaults ask nobody.

    ``is_interactive``: whether a person can answer and an editor can be opened.
    """

    is_interactive = False
    in_shell = False

    def progress(self, jobs: Sequence[Job]) -> AbstractContextManager[Any]:
        """Show how far jobs are, while the context is open."""
        return nullcontext()

    async def confirm(self, question: str) -> bool:
        """Ask the person; nobody there means no."""
        return False

    async def edit(self, text: str, *, suffix: str) -> str:
        """Let the person edit a text.

        :raises InvalidInput: there is nobody who could
        """
        raise InvalidInput("edit", None, "", message="edit needs a terminal", cure="use set")


class ShellContext(msgspec.Struct):
    """What a command runs with.

    ``line`` is what was typed; ``options`` are the global options.
    """

    cluster: Cluster
    options: Options
    line: str
    surroundings: Surroundings

    def refuse_dry_run(self, why: str) -> None:
        """For commands that cannot be planned.

        :raises InvalidInput: a plan was asked for
        """
        if self.options.dry_run:
            raise InvalidInput("--dry-run", None, "", message=f"--dry-run: {why}")
