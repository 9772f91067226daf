"""Reads words by a command's signature, and says in one line what is wrong with them.

The reading is cyclopts'; its errors become :class:`~vagoth.errors.InvalidInput`, as all others
about input are.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
from cyclopts import (
    App,
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    Parameter,
    RepeatArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from vagoth.errors import InvalidInput, nearest
from vagoth.shell.grammar import COMMANDS, Command, Registry, Required
from vagoth.shell.line import GLOBAL_OPTIONS, NO_OPTIONS, Options, quoted, take_options


class Parsed(msgspec.Struct, frozen=True):
    """A line as a call: the command, what it is called with, and the global options.

    ``command`` is nothing where none was named; ``line`` is what was typed, but for global options.
    """

    command: Command | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    options: Options
    line: str = ""


def parse(
    words: Sequence[str], *, given: Options = NO_OPTIONS, commands: Registry = COMMANDS
) -> Parsed:
    """Read a line.

    :param given: global options that hold already
    :raises InvalidInput: an unknown command or option (with the nearest there is), or a value
        that is missing, too many, or not of its type
    """
    options, rest = take_options(words, given)
    if not rest:
        return Parsed(None, (), {}, options)
    name, *arguments = rest
    if name.startswith("-"):
        raise _unknown_option(name, None)
    command = commands.get(name)
    line = " ".join(map(quoted, rest))
    if options.help:
        return Parsed(command, (), {}, options, line)
    bound = _bind(command, arguments)
    return Parsed(command, bound.args, bound.kwargs, options, line)


_apps: dict[Callable[..., Any], App] = {}


def _bind(command: Command, arguments: Sequence[str]) -> inspect.BoundArguments:
    app = _apps.get(command.run)
    if app is None:
        app = _apps[command.run] = App(
            name=command.name,
            help_flags=(),
            version_flags=(),
            default_parameter=Parameter(negative=(), consume_multiple=False),
        )
        app.default(_without_context(command.run))
    try:
        _, bound, _ = app.parse_args(list(arguments), print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise _explained(error, command) from None
    return bound


def _without_context(run: Callable[..., Any]) -> Callable[..., None]:
    """A function with the signature of a command as its user sees it, for cyclopts to read."""
    hints = typing.get_type_hints(run, include_extras=True)
    parameters = []
    for parameter in list(inspect.signature(run).parameters.values())[1:]:
        hint = hints[parameter.name]
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            parameter = parameter.replace(kind=parameter.POSITIONAL_ONLY)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            wanted = Required in typing.get_args(hint)
            hint = Annotated[str, Parameter(required=wanted)]
        parameters.append(parameter.replace(annotation=hint))

    def shape(*_args: Any, **_kwargs: Any) -> None:
        """Never called: cyclopts reads its signature."""

    shape.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    shape.__annotations__ = {each.name: each.annotation for each in parameters}
    return shape


_WORDS = {int: "a whole number", float: "a number", bool: "yes or no"}


def _explained(error: CycloptsError, command: Command) -> InvalidInput:
    usage = f"usage: {command.usage}"
    match error:
        case UnknownOptionError():
            return _unknown_option(error.token.keyword or error.token.value, command)
        case RepeatArgumentError():
            flag = error.token.keyword or "an argument"
            return InvalidInput(flag, None, "", message=f"{flag} is given more than once")
        case CoercionError():
            token = error.token
            what = (token.keyword if token else None) or command.name
            value = token.value if token else None
            expected = _WORDS.get(error.target_type or str, "what is wanted here")
            return InvalidInput(what, value, expected)
        case MissingArgumentError():
            return _missing(error, command, usage)
        case UnusedCliTokensError():
            extra = (error.unused_tokens or ["?"])[0]
            return InvalidInput(
                command.name,
                extra,
                "",
                message=f"{command.name} takes no further argument: {extra!r}",
                cure=usage,
            )
    error.verbose = False
    return InvalidInput(command.name, None, "", message=" ".join(str(error).split()), cure=usage)


def _missing(error: MissingArgumentError, command: Command, usage: str) -> InvalidInput:
    field = error.argument.field_info.name if error.argument is not None else ""
    wanted = next(
        (each for each in (*command.arguments, *command.options) if each.name == field), None
    )
    if wanted is None:
        return InvalidInput(command.name, None, "", message="something is missing", cure=usage)
    if wanted.flag is not None:
        what = wanted.marker.title
        return InvalidInput(
            wanted.flag, None, what, message=f"{wanted.flag} needs a value: {wanted.flag} {what}"
        )
    return InvalidInput(
        field,
        None,
        "given",
        message=f"{command.name}: {wanted.marker.title} is missing",
        cure=usage,
    )


def _unknown_option(word: str, command: Command | None) -> InvalidInput:
    flag = word.partition("=")[0]
    known = [option.flag for option in GLOBAL_OPTIONS]
    known += [option.flag for option in command.options if option.flag] if command else []
    near = nearest(flag, known)
    whose = f"{command.name} has" if command else "there is"
    return InvalidInput(
        flag,
        None,
        "an option",
        message=f"{whose} no option {flag!r}",
        cure=f"did you mean {near}?" if near else f"see: help {command.name}" if command else "",
    )
