"""The ``%vagoth`` magic: the commands of the command line, over the notebook's cluster.

Magics are called as functions, and a notebook's loop runs already: nothing in a function can wait
for it. So ``%vagoth …`` is read as ``await …``: the magic returns an awaitable, and IPython awaits
it at the top level, as it does what users await there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from vagoth.cluster import Cluster, connect
from vagoth.errors import InvalidInput, VagothError
from vagoth.render import as_data, html, one_line, plain
from vagoth.shell.context import Failure, Result, Surroundings
from vagoth.shell.line import Options, split
from vagoth.shell.parser import parse
from vagoth.shell.runner import run
from vagoth.tables import Table

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

#: How IPython writes a line with our magic as Python, with or without an assignment before it.
_CALL = re.compile(r"^(\s*(?:[^#'\"=]+=\s*)?)(?=get_ipython\(\)\.run_line_magic\('vagoth',)")
#: What needs a terminal, or never ends; and what to do instead.
_NOT_HERE = {
    "watch": "async for commit in cluster.watch()",
    "monitor": "cluster.monitor.start()",
    "edit": "await node.set(definition=…)",
    "shell": "",
}
#: Where the magic's own cluster is kept, for the user to close or to look at.
_NAME = "cluster"


class Output:
    """What a command found: a table to look at, ``records`` to work with.

    ``failures`` is what went wrong with some nodes, where it did with some only.
    """

    def __init__(self, result: Result) -> None:
        self.table: Table | None = result.table
        self.text = result.text
        self.failures: tuple[Failure, ...] = tuple(result.failures)

    @property
    def records(self) -> Any:
        """The data as ``--json`` prints it; nothing where there is none."""
        return as_data(self.table) if self.table is not None else None

    def __repr__(self) -> str:
        text = plain(self.table) if self.table is not None else self.text
        return "\n".join([text.rstrip("\n"), *self._told()])

    def _repr_html_(self) -> str:
        from html import escape

        shown = html(self.table) if self.table is not None else f"<pre>{escape(self.text)}</pre>"
        told = "".join(f'<div style="color:#cf222e">{escape(text)}</div>' for text in self._told())
        return shown + told

    def _told(self) -> list[str]:
        return [one_line(f"{about}: {error}") for about, error in self.failures]


class CommandFailed(VagothError):
    """A command of the magic failed; the notebook shows one line, and does not go on.

    Its cause is the error of the command.
    """

    def _render_traceback_(self) -> list[str]:
        return [one_line(f"vagoth: {self}")]


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Add ``%vagoth``; called by ``%load_ext vagoth``. Loading it again changes nothing."""

    async def vagoth(line: str) -> Output:
        return await _run(line, ipython.user_ns)

    vagoth.__doc__ = _run.__doc__
    ipython.magics_manager.register_function(vagoth, magic_kind="line", magic_name="vagoth")
    if awaited not in ipython.input_transformers_post:
        ipython.input_transformers_post.append(awaited)


def awaited(lines: list[str]) -> list[str]:
    """Lines of Python, with each call of the magic awaited."""
    return [_CALL.sub(r"\1await ", line) for line in lines]


async def _run(line: str, namespace: dict[str, Any]) -> Output:
    """Run a command of Vagoth: ``%vagoth list --type vm``; ``%vagoth help`` lists them.

    It works on the variable ``cluster``; where there is none it connects as ``vagoth`` alone would,
    or to what ``--config``, ``--store`` and ``--sim`` say, and sets it.

    :raises CommandFailed: the command was refused, or failed
    """
    try:
        parsed = parse(split(line))
        if parsed.command is None:
            parsed = parse(["help"])
        assert parsed.command is not None
        if (name := parsed.command.name) in _NOT_HERE:
            raise InvalidInput(
                "command", name, "", message=f"{name} is not for notebooks", cure=_NOT_HERE[name]
            )
        cluster = await _cluster(parsed.options, namespace)
        result = await run(parsed, cluster, Surroundings(), said_to="%vagoth ")
    except VagothError as error:
        raise CommandFailed(error.message, cure=error.cure) from error
    if result.failures and result.table is None:
        raise CommandFailed("; ".join(str(error) for _, error in result.failures))
    return Output(result)


async def _cluster(options: Options, namespace: dict[str, Any]) -> Cluster:
    """The notebook's cluster; connected, and kept in its variable, where there is none."""
    cluster = namespace.get(_NAME)
    if not isinstance(cluster, Cluster):
        cluster = await connect(options.config, store=options.store, sim=options.sim)
        namespace[_NAME] = cluster
        return cluster
    for flag in ("config", "store", "sim"):
        if getattr(options, flag) is not None:
            raise InvalidInput(
                f"--{flag}",
                None,
                "",
                message=f"--{flag} would replace the variable cluster",
                cure="await cluster.close(); del cluster",
            )
    return cluster
