"""A simulated host as somebody with a console on it would treat it, behind Vagoth's back."""

from __future__ import annotations

import secrets
import uuid as uuidlib
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from vagoth.definition import parse_size
from vagoth.drivers.base import Guest, Power
from vagoth.drivers.sim.definition import Down, Faults
from vagoth.drivers.sim.files import StateFile, path_of
from vagoth.drivers.sim.world import Behaviour, SimGuest, World

FOREIGN_MEMORY = "256MiB"


class SimHost:
    """One simulated host, to be looked at and disturbed by tests and demonstrations.

    It works on the host's state file, so it needs no registry and no session, may be used in
    another process, and all that happens reaches open sessions as if the host had done it.
    Each method blocks for a moment, as a file does. What is set here counts more than the
    host's definition, until :meth:`heal`.

    :param state_dir: as in ``DriverSettings``
    :param host_id: the id of the host's node
    """

    def __init__(self, state_dir: Path, host_id: str) -> None:
        self.id = host_id
        self._file = StateFile(path_of(state_dir, host_id), host_id)

    # --- guests -----------------------------------------------------------------------

    def guests(self) -> Sequence[Guest]:
        """All guests, as they are now."""
        return [guest.as_guest() for guest in self._file.read().guests.values()]

    def define_foreign(
        self,
        name: str,
        *,
        memory: int | str = FOREIGN_MEMORY,
        vcpus: int = 1,
        power: Power = Power.RUNNING,
        persistent: bool = True,
        autostart: bool = False,
    ) -> str:
        """Put a guest on the host that Vagoth knows nothing of; return its UUID.

        One that is not ``persistent`` is gone when it goes off.

        :raises JobFailed: there is a guest of that name
        """
        uuid, memory_bytes = str(uuidlib.uuid4()), parse_size(memory)
        guest = SimGuest(
            uuid=uuid,
            name=name,
            memory_bytes=memory_bytes,
            vcpus=vcpus,
            power=power,
            used_bytes=memory_bytes if power in (Power.RUNNING, Power.PAUSED) else 0,
            persistent=persistent,
            autostart=autostart,
        )
        self._change(lambda world: world.add(guest, "started by somebody else"))
        return uuid

    def start(self, uuid: str) -> None:
        """Start a guest, whatever memory the host has. :raises GuestNotFound: not here."""
        self._change(lambda world: world.start(uuid, memory_bytes=2**63))

    def destroy(self, uuid: str) -> None:
        """Pull a guest's plug. :raises GuestNotFound: it is not here."""
        self._change(lambda world: world.power_off(uuid, "destroyed by somebody else"))

    def crash(self, uuid: str) -> None:
        """Let a guest crash. :raises JobFailed: it is off."""
        self._change(lambda world: world.set_power(uuid, Power.CRASHED, "crashed"))

    def undefine(self, uuid: str) -> None:
        """Forget a guest that is off. :raises JobFailed: it runs."""
        self._change(lambda world: world.undefine(uuid))

    # --- the host ---------------------------------------------------------------------

    def cut(self) -> None:
        """Make the host a black hole: nothing is refused, nothing is ever answered."""
        self._behave(down=Down.HANG)

    def refuse(self) -> None:
        """Reset all connections to the host, and refuse new ones."""
        self._behave(down=Down.REFUSE)

    def deafen(self) -> None:
        """Let its guests ignore requests to shut down or reboot."""
        self._behave(deaf=True)

    def set_fault(self, *, refuse: float = 0.0, hang: float = 0.0, drop: float = 0.0) -> None:
        """Set how likely things go wrong, from 0 to 1; see :class:`Faults`."""
        self._behave(faults=Faults(refuse=refuse, hang=hang, drop=drop))

    def heal(self) -> None:
        """Undo :meth:`cut`, :meth:`refuse`, :meth:`deafen` and :meth:`set_fault`.

        The definition counts again. Sessions that were lost stay lost.
        """
        self._change(lambda world: setattr(world, "behaviour", Behaviour()))

    def drop(self) -> None:
        """Break all connections to the host; new ones can be made at once."""
        self._change(lambda world: setattr(world, "link", secrets.token_hex(8)))

    def restart(self) -> None:
        """Take the host's power away and give it back: guests are off, connections broken.

        Guests that are set to start by themselves run again.
        """

        def restart(world: World) -> None:
            for guest in list(world.guests.values()):
                if guest.is_active:
                    world.power_off(guest.uuid, "the host lost its power")
                if guest.autostart and guest.persistent:
                    world.start(guest.uuid, memory_bytes=2**63)
            world.link = secrets.token_hex(8)

        self._change(restart)

    def _behave(self, **changes: object) -> None:
        def behave(world: World) -> None:
            world.behaviour = replace(world.behaviour, **changes)

        self._change(behave)

    def _change(self, work: Callable[[World], object]) -> None:
        self._file.change_patiently(work)
