"""Live migration, managed by us: both hosts' libvirts are told what to do over the connections
that we have, and need not know each other. Only the guest's memory flows from host to host.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vagoth.drivers.base import MigrationProgress, Power
from vagoth.drivers.libvirt import looking
from vagoth.drivers.libvirt.errors import Meaning, meaning_of, words_of
from vagoth.drivers.libvirt.workers import Call
from vagoth.errors import (
    GuestNotFound,
    HostError,
    JobFailed,
    OutcomeUnknown,
    VagothError,
)

if TYPE_CHECKING:
    import libvirt

    from vagoth.drivers.libvirt.session import LibvirtSession

POLL_S = 0.5

Progress = Callable[[MigrationProgress], None]


async def migrate(
    source: LibvirtSession, target: LibvirtSession, uuid: str, progress: Progress | None
) -> None:
    """See :meth:`vagoth.drivers.base.Session.migrate`."""
    guest = await source.guest(uuid)
    if guest is None:
        raise GuestNotFound(source.host.name, uuid)
    if guest.power not in (Power.RUNNING, Power.PAUSED):
        raise JobFailed(f"{guest.name} does not run on {source.host.name}", cure="start it there")
    async with source.migrations:
        await _Migration(source, target, uuid, guest.name, progress).run()


class _Migration:
    def __init__(
        self,
        source: LibvirtSession,
        target: LibvirtSession,
        uuid: str,
        name: str,
        progress: Progress | None,
    ) -> None:
        self.source = source
        self.target = target
        self.uuid = uuid
        self.what = f"the migration of {name} to {target.host.name}"
        self.progress = progress

    async def run(self) -> None:
        """Move the guest. However this ends, no thread is in the migration any more, or the
        connections that it needs are gone."""
        move = asyncio.ensure_future(self._move())
        try:
            await self._watch(move)
        except asyncio.CancelledError:
            await self._call_off(move)
            raise
        error = move.exception()
        if error is None:
            return
        if not isinstance(error, VagothError) or isinstance(error, HostError):
            raise error
        if not await self._is_moved(error):
            raise error

    async def _move(self) -> None:
        # The target serves calls as well: they count among those that it is given at once, and
        # its connection must not be closed from under them.
        held = await self.target.link.hold()
        address = _migration_uri(self.target)

        def move(connection: libvirt.virConnect, call: Call) -> None:
            held.is_used = True
            try:
                _move(connection, held.connection, call, self.uuid, address)
            finally:
                held.release()

        try:
            await self.source.link.call(self.what, move, uuid=self.uuid, is_bounded=False)
        finally:
            # Else its thread may still be in it, whatever became of the call.
            if not held.is_used:
                held.release()

    async def _watch(self, move: asyncio.Future[None]) -> None:
        """Wait for the end. The question after progress also finds a libvirtd that hangs."""
        while not move.done():
            await asyncio.wait({move}, timeout=POLL_S)
            if not self.target.is_open:
                # The source would go on sending for as long as TCP keeps hoping.
                await self._ask_to_abort()
            elif not move.done():
                await self._tell()

    async def _tell(self) -> None:
        try:
            told = await self.source.link.call(
                f"progress of {self.what}", lambda c, _: _progress(c, self.uuid)
            )
        except VagothError:
            # It may just have gone; how the migration ended is said by the migration.
            return
        if told is not None and self.progress is not None:
            self.progress(told)

    async def _call_off(self, move: asyncio.Future[None]) -> None:
        """Have the hosts call it off, and wait until they have: then it runs where it ran.

        :raises OutcomeUnknown: it is not known to; or it was faster, and has moved
        """
        while not move.done():
            await self._ask_to_abort()
            await asyncio.wait({move}, timeout=POLL_S)
        error = move.exception()
        if error is None or await self._is_moved(error):
            raise OutcomeUnknown(
                f"{self.what} was over before it could be called off",
                cure="look again where it is",
            )

    async def _ask_to_abort(self) -> None:
        # Between its phases there is nothing to abort. If the host is lost, so is it.
        with contextlib.suppress(VagothError):
            await self.source.link.call(
                f"the abort of {self.what}", lambda c, _: _abort(c, self.uuid)
            )

    async def _is_moved(self, error: BaseException) -> bool:
        """After a failure: whether the guest runs at the target, and no more at the source.

        :raises OutcomeUnknown: it cannot be said of either host
        """
        try:
            here, there = await asyncio.gather(
                self.source.guest(self.uuid), self.target.guest(self.uuid)
            )
        except VagothError as unseen:
            raise OutcomeUnknown(
                f"{self.what} failed ({error}), and where it runs is not known: {unseen}",
                cure="look again when both hosts answer",
            ) from error
        runs_here = here is not None and here.power in (Power.RUNNING, Power.PAUSED)
        runs_there = there is not None and there.power in (Power.RUNNING, Power.PAUSED)
        if runs_here == runs_there:
            where = "on both hosts" if runs_here else "on neither host"
            raise OutcomeUnknown(f"{self.what} failed ({error}), and it runs {where}") from error
        if runs_there and here is not None:
            await self.source.undefine(self.uuid)
        return runs_there


def _move(
    source: libvirt.virConnect,
    target: libvirt.virConnect,
    call: Call,
    uuid: str,
    uri: str | None,
) -> None:
    import libvirt

    domain = source.lookupByUUIDString(uuid)
    flags = (
        libvirt.VIR_MIGRATE_LIVE
        | libvirt.VIR_MIGRATE_PERSIST_DEST
        | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    )
    params: Any = {libvirt.VIR_MIGRATE_PARAM_URI: uri} if uri else {}
    call.about_to_change()
    try:
        domain.migrate3(target, params, flags)
    except libvirt.libvirtError as error:
        if meaning_of(error) is Meaning.LOST and source.isAlive():
            # The same error, whichever connection was lost: it says nothing against this one.
            raise OutcomeUnknown(f"the target was lost: {words_of(error)}") from error
        raise


def _migration_uri(target: LibvirtSession) -> str | None:
    """Where the source sends the memory: the address by which we reach the target, so that
    hosts need not resolve each other's names. Nothing for this machine: libvirt then asks it."""
    if target.link.ssh is None:
        return None
    address = target.link.ssh.peer_address
    try:
        is_ipv6 = ipaddress.ip_address(address).version == 6
    except ValueError:
        is_ipv6 = False
    return f"tcp://[{address}]" if is_ipv6 else f"tcp://{address}"


def _progress(connection: libvirt.virConnect, uuid: str) -> MigrationProgress | None:
    domain = looking.find(connection, uuid)
    stats: Any = domain.jobStats() if domain is not None else {}
    if "data_total" not in stats:
        return None
    return MigrationProgress(
        transferred_bytes=stats.get("data_processed", 0),
        remaining_bytes=stats.get("data_remaining", 0),
        total_bytes=stats["data_total"],
    )


def _abort(connection: libvirt.virConnect, uuid: str) -> None:
    domain = looking.find(connection, uuid)
    if domain is not None:
        domain.abortJob()
