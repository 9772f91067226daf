"""What can go wrong, as one tree. The class tells the caller which case it is.

::

    VagothError                     exit code
    ├── InvalidInput                2   your input; nothing was changed
    │   └── ConfigError             2   ... in vagoth.toml, at a line
    ├── NodeNotFound                3   no such node; names the nearest one
    ├── Conflict                    4   somebody else has it; names the holder
    │   ├── Taken                   4   id, name or key belongs to another node
    │   ├── Claimed                 4   the VM belongs to, or runs on, another host
    │   ├── InUse                   4   the node is still placed, or has children
    │   ├── Busy                    4   another process works on the node
    │   └── StaleRevision           4   the record changed since it was read
    ├── HostError                   5   a host could not be used; names the cure
    │   ├── HostUnreachable         5   refused, timed out, connection lost
    │   ├── HostKeyError            5   the host key is unknown, or has changed
    │   ├── LoginRefused            5   the host does not let this user in
    │   ├── PassphraseNeeded        5   the private key cannot be read without one
    │   └── HypervisorUnavailable   5   no libvirtd, its socket is closed, a wrong URI
    ├── JobFailed                   1   the host said no; nothing is in doubt
    │   ├── GuestNotFound           1   the host has no such guest
    │   ├── ShutdownTimeout         1   the guest still runs; nothing was forced
    │   ├── NoHostFits              1   no host can take the VM; says why for each
    │   └── NotSupported            1   the driver or the host cannot do this
    ├── RegistryError               1   the registry could not be read or written
    │   └── WatchGap                1   commits were missed; look again from the start
    ├── MissingExtra                1   an optional part is not installed
    └── OutcomeUnknown              6   it may or may not have happened

Every error carries the objects and figures that it is about, so that a program
need not read the message, and ``cure``: what a person can do about it (may be
empty).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import ClassVar


class VagothError(Exception):
    """Anything Vagoth refuses or fails to do.

    ``exit_code`` is what the command line ends with; ``cure`` says what to do.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, cure: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.cure = cure

    def say_instead(self, technical: str, familiar: str) -> None:
        """Put the name that a person knows where the message has a technical one (a UUID)."""
        self.message = self.message.replace(technical, familiar)
        self.cure = self.cure.replace(technical, familiar)

    def __str__(self) -> str:
        return f"{self.message} ({self.cure})" if self.cure else self.message


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that ``word`` was most likely meant to be, if one is near."""
    matches = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return matches[0] if matches else None


# --- your input -----------------------------------------------------------------------


class InvalidInput(VagothError, ValueError):
    """A value was refused before anything changed.

    ``field`` is a dotted path (``nics[0].mac``), ``value`` what was given and
    ``expected`` what would have been accepted.
    """

    exit_code = 2

    def __init__(
        self, field: str, value: object, expected: str, *, message: str = "", cure: str = ""
    ) -> None:
        super().__init__(message or f"{field}: {shown(value)} is not {expected}", cure=cure)
        self.field = field
        self.value = value
        self.expected = expected


class ConfigError(InvalidInput):
    """The configuration file is refused; ``path`` and ``line`` say where."""

    def __init__(self, path: str, line: int | None, problem: str, *, cure: str = "") -> None:
        where = f"{path}, line {line}" if line is not None else path
        super().__init__(
            "config", path, "a valid configuration", message=f"{where}: {problem}", cure=cure
        )
        self.path = path
        self.line = line
        self.problem = problem


class NodeNotFound(VagothError, LookupError):
    """The registry has no node of that name, id or key."""

    exit_code = 3

    def __init__(self, name: str, *, candidates: Iterable[str] = ()) -> None:
        self.name = name
        self.nearest = nearest(name, candidates)
        super().__init__(
            f"there is no node {shown(name)}",
            cure=f"did you mean {self.nearest}?" if self.nearest else "",
        )


# --- somebody else has it -------------------------------------------------------------


class Conflict(VagothError):
    """Another node, host, process or writer holds what was asked for.

    Nothing was changed. ``holder`` names it.
    """

    exit_code = 4

    def __init__(self, message: str, *, holder: str = "", cure: str = "") -> None:
        super().__init__(message, cure=cure)
        self.holder = holder


class Taken(Conflict):
    """An id, name or key (``what``) belongs to the node named ``holder``."""

    def __init__(self, what: str, value: str, holder: str) -> None:
        super().__init__(f"{what} {shown(value)} is taken by {holder}", holder=holder)
        self.what = what
        self.value = value


class Claimed(Conflict):
    """The VM is held by, or was found running on, the host named ``holder``."""


class InUse(Conflict):
    """The node cannot go while others depend on it (``holder``)."""


class Busy(Conflict):
    """Another process works on the node; ``holder`` says which, its txid and since when."""


class StaleRevision(Conflict):
    """A record is no longer what the commit was decided on. Read again and decide anew."""


# --- a host ---------------------------------------------------------------------------


class HostError(VagothError):
    """The host named ``host`` could not be used. What it was asked to do was not begun."""

    exit_code = 5

    def __init__(self, host: str, problem: str, *, cure: str = "") -> None:
        super().__init__(f"{host}: {problem}", cure=cure)
        self.host = host
        self.problem = problem


class HostUnreachable(HostError):
    """No connection: refused, timed out, no route, no such name, or it was lost."""


class HostKeyError(HostError):
    """The host's key is unknown, or is not the one on record."""


class LoginRefused(HostError):
    """The host answered, and does not accept this user."""


class PassphraseNeeded(HostError):
    """The private key is encrypted and no agent holds it."""


class HypervisorUnavailable(HostError):
    """The host lets us in, but its hypervisor does not answer."""


# --- a job ----------------------------------------------------------------------------


class JobFailed(VagothError):
    """The host was asked and said no. What is now true is known."""


class GuestNotFound(JobFailed):
    """The host (``host``) has no guest with that UUID."""

    def __init__(self, host: str, uuid: str) -> None:
        super().__init__(f"{host} has no guest {uuid}")
        self.host = host
        self.uuid = uuid


class ShutdownTimeout(JobFailed):
    """The guest still runs ``after_s`` seconds after it was asked to power off."""

    def __init__(self, name: str, after_s: float) -> None:
        super().__init__(
            f"{name} still runs {after_s:g} s after it was asked to shut down",
            cure="ask again with a longer --grace, or use stop to pull the plug",
        )
        self.name = name
        self.after_s = after_s


class NoHostFits(JobFailed):
    """No host can take the VM; ``reasons`` says why, per host name."""

    def __init__(self, name: str, reasons: Mapping[str, str]) -> None:
        self.name = name
        self.reasons = dict(reasons)
        why = "; ".join(f"{host}: {reason}" for host, reason in self.reasons.items())
        super().__init__(
            f"no host can take {name}: {why or 'there are no hosts'}",
            cure="" if reasons else "add one with: new NAME --type hv driver=… ssh=…",
        )


class NotSupported(JobFailed):
    """The driver, or this host, lacks the capability."""


# --- the registry, the installation, the unknown ----------------------------------------


class RegistryError(VagothError):
    """The registry could not be read or written. No commit was acknowledged."""


class WatchGap(RegistryError):
    """The stream of commits from the wanted position is not to be had without a gap."""


class MissingExtra(VagothError, ImportError):
    """An optional part of Vagoth is not installed; ``cure`` is the command that does it."""

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs an optional part that is not installed",
            cure=f"pip install 'vagoth[{extra}]'",
        )
        self.extra = extra


class OutcomeUnknown(VagothError):
    """It may or may not have happened: the answer was lost.

    The registry keeps the doubt (state ``unknown``, or an intent) until a host says
    what is true; ``poll`` asks it.
    """

    exit_code = 6


def shown(value: object) -> str:
    """``value`` as it may stand in a one-line message: quoted, escaped, and not endless."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…{text[-16:]}"
