"""What a command is: its signature is its parser, its completion and its help.

A command is a coroutine function under :func:`command`. Its first parameter is the
:class:`~vagoth.shell.context.ShellContext`; those before ``*`` are arguments, a ``*names`` takes
all that are left, keyword-only ones are options (a tuple: any number of times). Markers in
``Annotated`` say what stands there, for completion and help; ``:param:`` lines of its docstring
describe it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec

from vagoth.errors import InvalidInput, nearest

# Structs and not dataclasses: these are made at each start of the command line, and a dataclass
# costs half a millisecond to make.

# --- markers: what stands at an argument's place ----------------------------------------


class Marker(msgspec.Struct, frozen=True):
    """What a value is; ``title`` names it in usage lines."""

    title: str = "VALUE"


class Names(Marker, frozen=True):
    """A node's name, id or key; of one type, if given. ``globs``: patterns too."""

    title: str = "NAME"
    type: str | None = None
    globs: bool = False


class Host(Names, frozen=True):
    """A hypervisor's name."""

    title: str = "HOST"
    type: str | None = "hv"


class NewName(Marker, frozen=True):
    """A name that no node has yet."""

    title: str = "NAME"


class TypeName(Marker, frozen=True):
    """A node type."""

    title: str = "TYPE"


class StateName(Marker, frozen=True):
    """A state."""

    title: str = "STATE"


class TenantName(Marker, frozen=True):
    """A tenant."""

    title: str = "TENANT"


class TagArg(Marker, frozen=True):
    """A tag: ``key=value``, ``key`` alone, or ``key=``."""

    title: str = "KEY[=VALUE]"


class KeyArg(Marker, frozen=True):
    """A key that is unique in the cluster: ``kind:value``. ``of``: one that the node named by
    that argument holds."""

    title: str = "KEY"
    of: str | None = None


class LinkArg(Marker, frozen=True):
    """A link: ``name=NODE``."""

    title: str = "LINK=NODE"


class Assignments(Marker, frozen=True):
    """``dotted.key=value`` of a definition: of the type in option ``type``, or of the node that
    the argument ``of`` names."""

    title: str = "FIELD=VALUE"
    of: str | None = None


class TimeArg(Marker, frozen=True):
    """A past time: so long ago, or an ISO time."""

    title: str = "TIME"


class TxId(Marker, frozen=True):
    """The id of a transaction."""

    title: str = "TXID"


class Moment(Marker, frozen=True):
    """A past time, or the id of a transaction: right after it."""

    title: str = "TIME|TXID"


class CommandName(Marker, frozen=True):
    """The name of a command."""

    title: str = "COMMAND"


class Number(Marker, frozen=True):
    """A number, of ``unit``."""

    title: str = "N"
    unit: str = ""


# --- commands ---------------------------------------------------------------------------


class Argument(msgspec.Struct, frozen=True):
    """One argument or option of a command.

    ``flag`` is how an option is typed (``--on``), nothing for arguments. ``many``: may stand more
    than once. ``takes_value`` is false for options that are simply there or not.
    """

    name: str
    marker: Marker
    flag: str | None = None
    many: bool = False
    required: bool = False
    takes_value: bool = True
    help: str = ""

    @property
    def typed(self) -> str:
        """What is typed for it."""
        text = self.marker.title
        if self.flag is not None:
            text = f"{self.flag} {text}" if self.takes_value else self.flag
        return text + "…" if self.many else text

    @property
    def usage(self) -> str:
        """How it stands in a usage line."""
        return self.typed if self.required else f"[{self.typed}]"


class Command(msgspec.Struct, frozen=True):
    """A command, as its signature says. ``run`` is the function itself.

    :param in_shell: whether it makes sense at the shell's prompt
    :param on_command_line: whether it makes sense outside the shell
    :param needs_cluster: whether a cluster must be connected to run it
    :param ends_when_told: whether SIGTERM is its proper end, and so a success
    """

    name: str
    run: Callable[..., Awaitable[Any]]
    arguments: tuple[Argument, ...]
    options: tuple[Argument, ...]
    summary: str
    details: str
    in_shell: bool = True
    on_command_line: bool = True
    needs_cluster: bool = True
    ends_when_told: bool = False

    @property
    def usage(self) -> str:
        """One line that shows what may be typed."""
        return " ".join([self.name, *(each.usage for each in (*self.arguments, *self.options))])

    def option(self, flag: str) -> Argument | None:
        """The option typed so, if there is one."""
        return next((option for option in self.options if option.flag == flag), None)


class Registry:
    """Commands by name. A module of commands is imported when one of its own is first needed.

    :param modules: which module defines a command, by the command's name
    """

    def __init__(self, modules: dict[str, str]) -> None:
        self.modules = modules
        self._loaded: dict[str, Command] = {}

    def names(self) -> list[str]:
        """Every command's name, sorted."""
        return sorted(self.modules)

    def get(self, name: str) -> Command:
        """The command of that name.

        :raises InvalidInput: there is none; the error holds the nearest name
        """
        if name not in self._loaded:
            if name not in self.modules:
                near = nearest(name, self.modules)
                raise InvalidInput(
                    "command",
                    name,
                    "a command",
                    message=f"there is no command {name!r}",
                    cure=f"did you mean {near}?" if near else "see: vagoth help",
                )
            importlib.import_module(self.modules[name])
        return self._loaded[name]

    def all(self) -> list[Command]:
        """Every command, by name."""
        return [self.get(name) for name in self.names()]

    def add(self, command: Command) -> None:
        """Make a command known; its module is where it was defined."""
        self._loaded[command.name] = command
        self.modules.setdefault(command.name, command.run.__module__)


_HERE = "vagoth.shell.commands."

#: Vagoth's own commands, and the module that defines each.
COMMANDS = Registry(
    {
        name: _HERE + module
        for module, names in {
            "looking": "list tree info",
            "records": "new set delete rename edit",
            "verbs": "define start shutdown stop reboot pause resume undefine migrate",
            "hosts": "poll check",
            "following": "watch monitor jobs",
            "history": "history undo",
            "store": "store",
            "shell": "shell help exit quit",
        }.items()
        for name in names.split()
    }
)

_Run = TypeVar("_Run", bound=Callable[..., Awaitable[Any]])


def command(
    name: str,
    *,
    in_shell: bool = True,
    on_command_line: bool = True,
    needs_cluster: bool = True,
    ends_when_told: bool = False,
    registry: Registry = COMMANDS,
) -> Callable[[_Run], _Run]:
    """Make a coroutine function a command; it stays callable as it is."""

    def decorate(run: _Run) -> _Run:
        arguments, options = _arguments(run)
        summary, details, _ = _documentation(run)
        registry.add(
            Command(
                name,
                run,
                arguments,
                options,
                summary,
                details,
                in_shell,
                on_command_line,
                needs_cluster,
                ends_when_told,
            )
        )
        return run

    return decorate


def _arguments(run: Callable[..., Any]) -> tuple[tuple[Argument, ...], tuple[Argument, ...]]:
    hints = typing.get_type_hints(run, include_extras=True)
    described = _documentation(run)[2]
    positional: list[Argument] = []
    options: list[Argument] = []
    for parameter in list(inspect.signature(run).parameters.values())[1:]:
        hint = hints[parameter.name]
        marker = _marker(hint)
        help = described.get(parameter.name, "")
        if parameter.kind is parameter.KEYWORD_ONLY:
            plain = _plain(hint)
            options.append(
                Argument(
                    parameter.name,
                    marker or Marker(),
                    flag="--" + parameter.name.strip("_").replace("_", "-"),
                    many=typing.get_origin(plain) is tuple,
                    takes_value=plain is not bool,
                    help=help,
                )
            )
            continue
        many = parameter.kind is parameter.VAR_POSITIONAL
        required = parameter.default is parameter.empty and (not many or _is_required(hint))
        positional.append(
            Argument(
                parameter.name,
                marker or Marker(parameter.name.upper()),
                many=many,
                required=required,
                help=help,
            )
        )
    return tuple(positional), tuple(options)


class Required:
    """Marks ``*names`` that wants at least one."""


def _is_required(hint: Any) -> bool:
    return any(each is Required for each in _extras(hint))


def _extras(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()


def _plain(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _marker(hint: Any) -> Marker | None:
    return next((each for each in _extras(hint) if isinstance(each, Marker)), None)


def _documentation(run: Callable[..., Any]) -> tuple[str, str, dict[str, str]]:
    """A docstring as its first line, the rest of its text, and what it says of parameters."""
    text = (inspect.getdoc(run) or "").replace("``", "")
    prose, *fields = re.split(r"^:param (\w+):", text, flags=re.MULTILINE)
    summary, _, details = prose.strip().partition("\n")
    described = {
        name: " ".join(told.split()) for name, told in zip(fields[::2], fields[1::2], strict=True)
    }
    return summary.strip().rstrip("."), details.strip(), described
