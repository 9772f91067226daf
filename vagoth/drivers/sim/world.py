"""A simulated host as plain data, and what may be done to it. Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
from msgspec.structs import replace

from vagoth.definition import Kind
from vagoth.drivers.base import Guest, GuestEvent, GuestSpec, Power
from vagoth.drivers.sim.definition import Down, Faults, SimHostDefinition
from vagoth.errors import GuestNotFound, InvalidInput, JobFailed

JOURNAL_LENGTH = 128


class SimGuest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A guest of a simulated host.

    ``used_bytes`` is the memory that it was last started with; ``off_at`` when it will have
    powered itself off, as it was asked to.
    """

    uuid: str
    name: str
    memory_bytes: int
    vcpus: int = 1
    kind: Kind = Kind.KVM
    power: Power = Power.OFF
    used_bytes: int = 0
    autostart: bool = False
    persistent: bool = True
    off_at: float | None = None

    @property
    def is_active(self) -> bool:
        """Whether it holds memory: it runs or is paused."""
        return self.power in (Power.RUNNING, Power.PAUSED)

    def as_guest(self) -> Guest:
        """The guest as a driver reports it."""
        return Guest(
            uuid=self.uuid,
            name=self.name,
            power=self.power,
            memory_bytes=self.memory_bytes,
            vcpus=self.vcpus,
            autostart=self.autostart,
            persistent=self.persistent,
        )


class Happening(msgspec.Struct, frozen=True):
    """One line of a host's journal, numbered without gaps."""

    serial: int
    uuid: str
    name: str
    power: Power | None
    detail: str

    def as_event(self) -> GuestEvent:
        """The change as a driver reports it."""
        return GuestEvent(self.uuid, self.name, self.power, self.detail)


class Arrival(msgspec.Struct, frozen=True):
    """A guest that is here if, and only if, the state file ``source`` says that it departed."""

    guest: SimGuest
    source: str


class Behaviour(msgspec.Struct, frozen=True, omit_defaults=True):
    """What somebody set while the host ran. The definition counts where nothing is set."""

    faults: Faults | None = None
    down: Down | None = None
    deaf: bool | None = None


class World(msgspec.Struct, kw_only=True):
    """All that is true of one simulated host.

    A reader's copy is never changed. ``revision`` grows with each write. Connections made
    under another ``link`` than the present one are broken. ``due_at`` is when time alone will
    change something that nobody has written down yet.
    """

    name: str = ""
    revision: int = 0
    link: str = ""
    draws: int = 0
    due_at: float | None = None
    behaviour: Behaviour = Behaviour()
    guests: dict[str, SimGuest] = {}
    serial: int = 0
    journal: list[Happening] = []
    arriving: dict[str, Arrival] = {}
    departed: list[str] = []

    # --- how it behaves ---------------------------------------------------------------

    def down(self, definition: SimHostDefinition) -> Down:
        """How it is gone, just now."""
        return definition.down if self.behaviour.down is None else self.behaviour.down

    def faults(self, definition: SimHostDefinition) -> Faults:
        """What goes wrong, just now."""
        return definition.faults if self.behaviour.faults is None else self.behaviour.faults

    def is_deaf(self, definition: SimHostDefinition) -> bool:
        """Whether its guests ignore polite requests, just now."""
        return definition.deaf if self.behaviour.deaf is None else self.behaviour.deaf

    def draw(self, seed: int) -> float:
        """The next of the host's chances, from 0 to 1: the same in each run of a seed."""
        self.draws += 1
        # The place in the sequence is kept in the file: each process goes on where the last
        # one stopped, instead of meeting the same first faults again.
        return Random(f"{seed}/{self.draws}").random()

    # --- time -------------------------------------------------------------------------

    def next_due(self) -> float | None:
        """When time alone will change something; nothing if it will not."""
        if self.arriving:
            return 0.0
        return min((off_at for off_at, _ in self._leaving()), default=None)

    def tend(self, now: float, has_departed: Callable[[str, str], bool | None]) -> None:
        """Write down what time has brought: guests that powered off, and that have arrived.

        ``has_departed(source, token)`` tells whether a source has let a guest go; nothing if
        nobody can tell.
        """
        for token, arrival in list(self.arriving.items()):
            departed = has_departed(arrival.source, token)
            if departed is not None:
                del self.arriving[token]
            if departed:
                self._put(arrival.guest, "arrived")
        for off_at, uuid in sorted(self._leaving()):
            if off_at <= now:
                self.power_off(uuid, "powered itself off")

    def _leaving(self) -> list[tuple[float, str]]:
        return [
            (guest.off_at, guest.uuid)
            for guest in self.guests.values()
            if guest.power is Power.RUNNING and guest.off_at is not None
        ]

    # --- guests -----------------------------------------------------------------------

    def find(self, uuid: str) -> SimGuest:
        """The guest. :raises GuestNotFound: it is not here."""
        if uuid not in self.guests:
            raise GuestNotFound(self.name, uuid)
        return self.guests[uuid]

    def define(self, spec: GuestSpec, kinds: tuple[Kind, ...]) -> None:
        """Define or redefine; a guest that is active keeps its name until it is off."""
        wanted = spec.definition
        if wanted.kind not in kinds:
            raise InvalidInput("kind", str(wanted.kind), f"one of {', '.join(kinds)}")
        old = self.guests.get(spec.uuid)
        name = old.name if old is not None and old.is_active else spec.name
        self._check_name_is_free(spec.name, spec.uuid)
        guest = old or SimGuest(uuid=spec.uuid, name=name, memory_bytes=0)
        guest = replace(
            guest,
            name=name,
            memory_bytes=wanted.memory_bytes,
            vcpus=wanted.vcpus,
            kind=wanted.kind,
            autostart=False,
            persistent=True,
        )
        if guest != old:
            self._put(guest, "defined" if old is None else "redefined")

    def undefine(self, uuid: str) -> None:
        """Forget a guest that is off."""
        guest = self.guests.get(uuid)
        if guest is None:
            return
        if guest.is_active:
            raise JobFailed(f"{self.name} does not forget {guest.name}: it is {guest.power}")
        self._remove(guest, "undefined")

    def start(self, uuid: str, memory_bytes: int) -> bool:
        """Start what is off, if it fits into the host's memory; whether there was need."""
        guest = self.find(uuid)
        if guest.is_active:
            return False
        self.check_memory(guest, memory_bytes)
        used = guest.memory_bytes
        self._put(replace(guest, power=Power.RUNNING, used_bytes=used, off_at=None), "started")
        return True

    def check_memory(self, guest: SimGuest, memory_bytes: int) -> None:
        """:raises JobFailed: the host has not enough memory left for the guest."""
        used = sum(g.used_bytes for g in self.guests.values() if g.is_active)
        if used + guest.memory_bytes > memory_bytes:
            raise JobFailed(
                f"{self.name}: not enough memory for {guest.name}: it needs"
                f" {guest.memory_bytes} bytes, and {max(0, memory_bytes - used)} of"
                f" {memory_bytes} are free"
            )

    def ask_to_power_off(self, uuid: str, off_at: float, *, deaf: bool) -> bool:
        """Ask; whether there is anything to wait for. What was asked before comes first."""
        guest = self.find(uuid)
        if not guest.is_active:
            return False
        if guest.off_at is None and not deaf:
            # What the guest does next does not depend on whether we live to see it.
            self.guests[uuid] = replace(guest, off_at=off_at)
        return True

    def power_off(self, uuid: str, detail: str) -> None:
        """Turn it off. A guest that is not persistent is gone then."""
        guest = self.find(uuid)
        if guest.power is Power.OFF:
            return
        if guest.persistent:
            self._put(replace(guest, power=Power.OFF, used_bytes=0, off_at=None), detail)
        else:
            self._remove(guest, detail)

    def reboot(self, uuid: str, *, deaf: bool) -> None:
        """Ask for a reboot."""
        guest = self._active(uuid)
        if not deaf:
            self._note(guest, guest.power, "rebooted")

    def set_power(self, uuid: str, power: Power, detail: str) -> None:
        """Pause, resume or crash an active guest."""
        guest = self._active(uuid)
        if guest.power is not power:
            self._put(replace(guest, power=power), detail)

    def movable(self, uuid: str) -> SimGuest:
        """The guest, ready to migrate. :raises JobFailed: it does not run."""
        guest = self.find(uuid)
        if guest.power is not Power.RUNNING:
            raise JobFailed(f"{guest.name} does not run on {self.name}: it is {guest.power}")
        return guest

    def check_receives(self, guest: SimGuest, definition: SimHostDefinition) -> None:
        """:raises JobFailed: this host does not take the guest, running, from another."""
        if guest.kind not in definition.kinds:
            raise JobFailed(f"{self.name} cannot run {guest.name}: it has no {guest.kind}")
        known = self.guests.get(guest.uuid)
        if known is not None and known.is_active:
            raise JobFailed(f"{guest.name} is {known.power} on {self.name} already")
        self._check_name_is_free(guest.name, guest.uuid)
        self.check_memory(guest, definition.memory_bytes)

    def depart(self, uuid: str, token: str) -> None:
        """Let a guest go, and say so to whoever reads of its arrival."""
        self._remove(self.find(uuid), "migrated away")
        self.departed.append(token)

    def add(self, guest: SimGuest, detail: str) -> None:
        """Put a guest here as somebody else's tools would."""
        self._check_name_is_free(guest.name, guest.uuid)
        self._put(guest, detail)

    def _active(self, uuid: str) -> SimGuest:
        guest = self.find(uuid)
        if not guest.is_active:
            raise JobFailed(f"{guest.name} does not run on {self.name}: it is {guest.power}")
        return guest

    def _check_name_is_free(self, name: str, uuid: str) -> None:
        for guest in self.guests.values():
            if guest.name == name and guest.uuid != uuid:
                raise JobFailed(
                    f"{self.name}: the name {name} belongs to another guest, {guest.uuid}"
                )

    def _put(self, guest: SimGuest, detail: str) -> None:
        self.guests[guest.uuid] = guest
        self._note(guest, guest.power, detail)

    def _remove(self, guest: SimGuest, detail: str) -> None:
        del self.guests[guest.uuid]
        self._note(guest, None, detail)

    def _note(self, guest: SimGuest, power: Power | None, detail: str) -> None:
        self.serial += 1
        self.journal.append(Happening(self.serial, guest.uuid, guest.name, power, detail))
        del self.journal[:-JOURNAL_LENGTH]
