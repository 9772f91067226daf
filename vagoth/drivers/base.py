"""The driver contract: one kind of hypervisor, spoken to over sessions, one for each host.

A :class:`Driver` is made once per cluster and opens a :class:`Session` to a host. All verbs of
a session may be repeated: what is already so is left so, and is no error. Whoever calls them
holds the guest's node lock and the claim; a driver guards neither.

Each verb raises, besides what its own docstring names:

* :class:`~vagoth.errors.HostError` (``HostUnreachable``, ``HypervisorUnavailable``): the call
  was not sent, or it only read; nothing was changed;
* :class:`~vagoth.errors.OutcomeUnknown`: it was sent, and the answer was lost;
* :class:`~vagoth.errors.JobFailed`: the host said no, in its own words.

``tests/drivers/conformance.py`` shows all of it for any driver.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import msgspec

from vagoth.definition import Kind, VMDefinition


class Capability(StrEnum):
    """What a driver can do beyond status, define, undefine, start and stop."""

    EVENTS = "events"
    SHUTDOWN = "shutdown"
    REBOOT = "reboot"
    PAUSE = "pause"
    LIVE_MIGRATION = "live-migration"


class Power(StrEnum):
    """What a host says of a guest, just now."""

    OFF = "off"
    RUNNING = "running"
    PAUSED = "paused"
    CRASHED = "crashed"


@dataclass(frozen=True)
class Host:
    """A hypervisor to speak to: the node's id and name, and its definition."""

    id: str
    name: str
    definition: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DriverSettings:
    """What a cluster tells its drivers. Times in seconds.

    ``state_dir`` is private to this store and user; a driver may keep files there.
    """

    state_dir: Path
    connect_timeout_s: float = 10.0
    call_timeout_s: float = 30.0
    ssh_config: Path | None = None
    known_hosts: Path | None = None


@dataclass(frozen=True)
class GuestSpec:
    """A guest to be defined: found by its UUID ever after, called ``name`` on the host."""

    uuid: str
    name: str
    node_id: str
    definition: VMDefinition


@dataclass(frozen=True)
class Guest:
    """A guest as a host has it. ``memory_bytes`` and ``vcpus`` are what it is defined to use."""

    uuid: str
    name: str
    power: Power
    memory_bytes: int
    vcpus: int
    autostart: bool = False
    persistent: bool = True


@dataclass(frozen=True)
class GuestEvent:
    """A guest changed on its host. ``power`` is nothing where the host no longer has it."""

    uuid: str
    name: str
    power: Power | None
    detail: str = ""


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is: stored as metadata of its node at first contact, and when it changes.

    Never load figures: nothing here changes while guests come and go. ``host_uuid`` tells one
    machine from another; empty where the hypervisor has none to give (libvirt's test driver).
    """

    hostname: str
    host_uuid: str
    hypervisor: str
    version: str
    memory_bytes: int
    cpus: int
    kinds: tuple[Kind, ...]


@dataclass(frozen=True)
class Check:
    """One prerequisite of a host. ``ok`` is nothing where an earlier failure hid the answer."""

    name: str
    ok: bool | None
    detail: str
    cure: str = ""


@dataclass(frozen=True)
class MigrationProgress:
    """How far a live migration is. ``remaining_bytes`` may grow: the guest goes on writing."""

    transferred_bytes: int
    remaining_bytes: int
    total_bytes: int


class Session(ABC):
    """One host's hypervisor, connected. Used by many at once; closed by its driver's owner."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether it can still be used; once false, always false."""

    @abstractmethod
    async def closed(self) -> None:
        """Wait until it can no longer be used, for whatever reason."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the host. Fails all who wait. May be repeated; never raises."""

    @abstractmethod
    async def facts(self) -> HostFacts:
        """What the host is."""

    @abstractmethod
    async def guests(self) -> Sequence[Guest]:
        """All guests of the host, running or not, in one call to it."""

    @abstractmethod
    async def guest(self, uuid: str) -> Guest | None:
        """That guest as it is now, or nothing where the host does not have it."""

    @abstractmethod
    async def define(self, spec: GuestSpec) -> None:
        """Make the guest known to the host, off, or bring its definition up to date.

        It is never set to start by itself when the host boots. One that is running keeps what
        it has until it is next started.

        :raises InvalidInput: this host cannot run it (kind, field); names field and value
        :raises JobFailed: the host refuses it; or its name belongs to a guest of another UUID
        """

    @abstractmethod
    async def undefine(self, uuid: str) -> None:
        """Make the host forget a guest that is off, keeping its disks. Gone already is fine.

        :raises JobFailed: it runs
        """

    @abstractmethod
    async def start(self, uuid: str) -> None:
        """Start the guest, and return when it runs. One that is paused is left paused.

        :raises GuestNotFound: it is not defined here
        """

    @abstractmethod
    async def shutdown(self, uuid: str, *, grace_s: float) -> None:
        """Ask the guest to power off, and wait until it has.

        :raises ShutdownTimeout: it still runs after ``grace_s``; nothing was forced
        :raises GuestNotFound: it is not defined here
        """

    @abstractmethod
    async def stop(self, uuid: str) -> None:
        """Pull the plug, and return when the guest is off.

        :raises GuestNotFound: it is not defined here
        """

    @abstractmethod
    async def reboot(self, uuid: str) -> None:
        """Ask the guest to reboot; return once it was asked.

        :raises JobFailed: it is off
        :raises GuestNotFound: it is not defined here
        """

    @abstractmethod
    async def pause(self, uuid: str) -> None:
        """Freeze a running guest in memory. :raises JobFailed: it is off."""

    @abstractmethod
    async def resume(self, uuid: str) -> None:
        """Let a paused guest go on. :raises JobFailed: it is off."""

    @abstractmethod
    async def migrate(
        self,
        uuid: str,
        target: Session,
        *,
        progress: Callable[[MigrationProgress], None] | None = None,
    ) -> None:
        """Move a running guest to ``target`` while it runs.

        When it returns, the guest is defined and goes on running there, and is gone here.
        Cancelled, or failed: it runs here as before and is not there, unless the error is
        ``OutcomeUnknown``.

        :param target: a session of the same driver
        :raises JobFailed: it does not run here, or the hosts refuse
        """

    @abstractmethod
    def events(self) -> AbstractAsyncContextManager[AsyncIterator[GuestEvent]]:
        """Changes of this host's guests, whoever makes them, from entering the context on.

        The iteration raises :class:`~vagoth.errors.HostUnreachable` when the connection is lost.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class Driver(ABC):
    """Speaks to one kind of hypervisor."""

    #: What ``driver = …`` of a host's definition says.
    name: ClassVar[str]
    capabilities: ClassVar[frozenset[Capability]]
    #: The type of the definitions of hosts with this driver. It has a field ``driver``.
    HostDefinition: ClassVar[type[msgspec.Struct]]

    def __init__(self, settings: DriverSettings) -> None:
        self.settings = settings

    @abstractmethod
    async def open(self, host: Host) -> Session:
        """Connect to a host, within ``settings.connect_timeout_s``.

        :raises HostError: which kind it is says what is wrong; ``cure`` what to do
        :raises MissingExtra: the driver's library is not installed
        """

    @abstractmethod
    async def check(self, host: Host) -> Sequence[Check]:
        """Try each prerequisite of a host in order, with a cure for what fails. Never raises
        a HostError: it becomes the check that failed."""

    async def close(self) -> None:  # noqa: B027 - most drivers share nothing
        """Let go of what sessions shared. Called once, after all sessions are closed."""
