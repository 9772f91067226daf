"""Running one parsed line, whoever typed it: the same for command line, shell and notebook."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from vagoth.errors import InvalidInput
from vagoth.shell.context import Result, ShellContext, Surroundings
from vagoth.shell.parser import Parsed

if TYPE_CHECKING:
    from vagoth.cluster import Cluster


async def run(
    parsed: Parsed,
    cluster: Cluster | None,
    surroundings: Surroundings,
    *,
    said_to: str = "",
    on_transaction: Callable[[str], None] | None = None,
) -> Result:
    """Run the command of a line, in one transaction with the line as its reason.

    :param cluster: may be missing for commands that need none
    :param said_to: stands before the line in that reason
    :param on_transaction: called with the transaction's id before the command begins
    :raises VagothError: it was refused, or failed
    :raises Interrupted: it was cancelled, and this is known of what it did
    """
    command = parsed.command
    assert command is not None
    if surroundings.in_shell and not command.in_shell:
        _refuse(command.name, "is of no use inside the shell")
    if not surroundings.in_shell and not command.on_command_line:
        _refuse(command.name, "is a command of the shell's")
    if parsed.options.help:
        from vagoth.shell.commands.shell import help_of

        return Result(text=help_of(command))
    # Commands that need no cluster do not touch it.
    ctx = ShellContext(cast("Cluster", cluster), parsed.options, parsed.line, surroundings)
    if cluster is None or not command.needs_cluster:
        return cast(Result, await command.run(ctx, *parsed.args, **parsed.kwargs))
    async with cluster.transaction(reason=f"{said_to}{parsed.line}") as tx:
        if on_transaction is not None:
            on_transaction(tx.id)
        return cast(Result, await command.run(ctx, *parsed.args, **parsed.kwargs))


def _refuse(name: str, why: str) -> None:
    raise InvalidInput("command", name, "", message=f"{name} {why}")
