"""Opening a connection to a host's libvirt, step by step, each with an error of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vagoth.drivers.base import DriverSettings
from vagoth.drivers.libvirt import loop as libvirt_loop
from vagoth.drivers.libvirt.definition import LibvirtHost
from vagoth.drivers.libvirt.errors import Meaning, meaning_of, refused_user, words_of
from vagoth.drivers.libvirt.link import Link
from vagoth.drivers.libvirt.sockets import START_LIBVIRTD, find_socket
from vagoth.drivers.libvirt.workers import on_thread
from vagoth.errors import HostError, HypervisorUnavailable
from vagoth.ssh import Passed, SSHConnection, connect

if TYPE_CHECKING:
    import libvirt


async def open_link(
    host_name: str, definition: LibvirtHost, settings: DriverSettings, passed: Passed | None = None
) -> Link:
    """Connect to a host's libvirt, within ``settings.connect_timeout_s`` overall."""
    passed = passed or (lambda stage, detail: None)
    deadline = asyncio.get_running_loop().time() + settings.connect_timeout_s
    await on_thread(libvirt_loop.start)
    target = definition.target
    if target is None:
        link = Link(host_name, settings.call_timeout_s, None)
        uri = definition.uri_through(definition.socket) if definition.socket else definition.uri
        return await _opened(link, uri, definition, deadline, settings, passed)
    ssh = await connect(
        host_name,
        target,
        config=settings.ssh_config,
        known_hosts=settings.known_hosts,
        timeout_s=settings.connect_timeout_s,
        passed=passed,
    )
    try:
        left_s = deadline - asyncio.get_running_loop().time()
        remote = await find_socket(ssh, definition, timeout_s=left_s, passed=passed)
        local = await ssh.forward_socket(remote)
    except BaseException:
        await ssh.close()
        raise
    link = Link(host_name, settings.call_timeout_s, ssh)
    try:
        return await _opened(
            link, definition.uri_through(local), definition, deadline, settings, passed
        )
    finally:
        # Once libvirt is connected nobody else need be, and nothing is left behind if we die.
        ssh.stop_forwarding(local)


async def _opened(
    link: Link,
    uri: str,
    definition: LibvirtHost,
    deadline: float,
    settings: DriverSettings,
    passed: Passed,
) -> Link:
    import libvirt

    try:
        async with asyncio.timeout_at(deadline):
            await link.open(uri)
    except TimeoutError as error:
        await link.close()
        raise HypervisorUnavailable(
            link.host_name,
            f"libvirt accepts a connection, and says nothing in {settings.connect_timeout_s:g} s",
            cure="see whether libvirtd hangs: systemctl restart libvirtd",
        ) from error
    except libvirt.libvirtError as error:
        await link.close()
        raise translate_open(error, link.host_name, definition, link.ssh) from error
    except BaseException:
        await link.close()
        raise
    passed("hypervisor", definition.uri)
    return link


def translate_open(
    error: libvirt.libvirtError,
    host: str,
    definition: LibvirtHost,
    ssh: SSHConnection | None,
) -> HostError:
    """Why libvirt refuses to be opened, given that its socket was found (or is not remote)."""
    words = words_of(error)
    meaning = meaning_of(error)
    if meaning is Meaning.REFUSED_USER or "Permission denied" in words:
        return refused_user(host, words, ssh.user if ssh else "")
    if meaning is Meaning.LOST:
        return HypervisorUnavailable(
            host, f"libvirtd does not answer: {words}", cure=START_LIBVIRTD
        )
    return HypervisorUnavailable(
        host,
        f"libvirt does not open {definition.uri}: {words}",
        cure="correct uri in the host's definition, or install that driver of libvirt's there",
    )
