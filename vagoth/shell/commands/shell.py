"""Commands about the shell itself: shell, help, exit."""

from __future__ import annotations

import textwrap
from typing import Annotated

from vagoth.shell.context import Result, ShellContext
from vagoth.shell.grammar import COMMANDS, Command, CommandName, command
from vagoth.shell.line import GLOBAL_OPTIONS

_WIDTH = 79


@command("shell", in_shell=False, needs_cluster=False)
async def shell(ctx: ShellContext) -> Result:
    """Open the interactive shell; so does ``vagoth`` alone at a terminal."""
    from vagoth.shell.app import run_shell

    return Result(exit_code=await run_shell(ctx.options))


@command("help", needs_cluster=False)
async def help_(ctx: ShellContext, name: Annotated[str | None, CommandName()] = None) -> Result:
    """Explain a command, or list them all.

    :param name: the command
    """
    in_shell = ctx.surroundings.in_shell
    return Result(text=help_of(COMMANDS.get(name)) if name else overview(in_shell=in_shell))


@command("exit", on_command_line=False, needs_cluster=False)
async def exit_(ctx: ShellContext) -> Result:
    """Leave the shell; so does Ctrl-D."""
    return Result(leave=True)


@command("quit", on_command_line=False, needs_cluster=False)
async def quit_(ctx: ShellContext) -> Result:
    """Leave the shell; so does Ctrl-D."""
    return Result(leave=True)


def overview(*, in_shell: bool) -> str:
    """All commands with a line each, and the global options."""
    shown = [
        command
        for command in COMMANDS.all()
        if (command.in_shell if in_shell else command.on_command_line)
    ]
    usage = "" if in_shell else "usage: vagoth [OPTION…] COMMAND …\n\n"
    return (
        usage
        + _listing("commands", [(command.name, command.summary) for command in shown])
        + "\n"
        + _listing("options, before or after the command", _global_options(in_shell))
        + "\nhelp COMMAND explains one.\n"
    )


def help_of(command: Command) -> str:
    """All there is to know of one command."""
    first = textwrap.fill(f"{command.summary}.", _WIDTH)
    usage = textwrap.fill(
        command.usage, _WIDTH, initial_indent="usage: ", subsequent_indent=" " * 11
    )
    parts = [f"{usage}\n", f"{first}\n"]
    if command.details:
        parts += [f"{_paragraph(each)}\n" for each in command.details.split("\n\n")]
    for title, members in (("arguments", command.arguments), ("options", command.options)):
        if members:
            parts.append(_listing(title, [(each.typed, each.help) for each in members]))
    return "\n".join(parts)


def _paragraph(text: str) -> str:
    example = text.removeprefix("For example: ")
    return f"For example:\n  {example}" if example != text else textwrap.fill(text, _WIDTH)


def _global_options(in_shell: bool) -> list[tuple[str, str]]:
    return [
        (f"{option.flag} {option.takes}" if option.takes else option.flag, option.help)
        for option in GLOBAL_OPTIONS
        if not (in_shell and option.flag in ("--config", "--store", "--sim", "--version"))
    ]


def _listing(title: str, entries: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in entries)
    lines = [
        textwrap.fill(
            text,
            _WIDTH,
            initial_indent=f"  {name:<{width}}  ",
            subsequent_indent=" " * (width + 4),
        )
        for name, text in entries
    ]
    return "\n".join([f"{title}:", *lines]) + "\n"
