"""The verbs of a virtual machine's life, on any number of machines at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from vagoth.errors import InvalidInput
from vagoth.shell.commands.acting import act, targets
from vagoth.shell.context import Result, ShellContext
from vagoth.shell.grammar import Host, Names, Number, Required, command

if TYPE_CHECKING:
    from vagoth.nodes.base import Node

VMs = Annotated[str, Names(type="vm", globs=True), Required]
On = Annotated[str | None, Host()]
_DAY_S = 86400.0


def _host(ctx: ShellContext, name: str | None) -> Node | None:
    from vagoth.actions.base import hypervisor

    if name is None:
        return None
    record = ctx.cluster.view.find(name)
    hypervisor(record)
    return ctx.cluster.node(record)


@command("define")
async def define(ctx: ShellContext, *names: VMs, on: On = None) -> Result:
    """Put virtual machines on a host, off; or bring what their hosts have up to date.

    :param names: the machines: names, ids, keys, or patterns such as 'web*'
    :param on: the host it must be; otherwise the allocator picks one
    """
    host = _host(ctx, on)
    return await act(ctx, targets(ctx, names, "define"), "define", on=host)


@command("start")
async def start(ctx: ShellContext, *names: VMs, on: On = None) -> Result:
    """Start virtual machines, each on its host, or on one picked for it.

    What runs already is left so.

    :param names: the machines: names, ids, keys, or patterns such as 'web*'
    :param on: the host it must be; otherwise the allocator picks one
    """
    host = _host(ctx, on)
    return await act(ctx, targets(ctx, names, "start"), "start", on=host)


@command("shutdown")
async def shutdown(
    ctx: ShellContext,
    *names: VMs,
    grace: Annotated[float | None, Number(title="SECONDS", unit="seconds")] = None,
) -> Result:
    """Ask virtual machines to power off; ``stop`` pulls the plug instead.

    :param names: the machines: names, ids, keys, or patterns such as 'web*'
    :param grace: how long they may take; they are not forced (default: as configured, 120)
    """
    if grace is not None and not 0 < grace <= _DAY_S:
        raise InvalidInput("--grace", grace, "a number of seconds above 0, and at most a day")
    return await act(ctx, targets(ctx, names, "shutdown"), "shutdown", grace_s=grace)


@command("stop")
async def stop(ctx: ShellContext, *names: VMs) -> Result:
    """Pull the plug of virtual machines; ``shutdown`` asks politely instead.

    :param names: the machines: names, ids, keys, or patterns such as 'web*'
    """
    return await act(ctx, targets(ctx, names, "stop"), "stop")


@command("reboot")
async def reboot(ctx: ShellContext, *names: VMs) -> Result:
    """Ask virtual machines to reboot.

    :param names: the machines: names, ids, keys, or patterns such as 'web*'
    """
    return await act(ctx, targets(ctx, names, "reboot"), "reboot")


@command("pause")
async def pause(ctx: ShellContext, *names: VMs) -> Result:
    """Freeze virtual machines in memory, until ``resume``.

    :param names: the machines: names, ids, keys, or patterns such as 'web*'
    """
    return await act(ctx, targets(ctx, names, "pause"), "pause")


@command("resume")
async def resume(ctx: ShellContext, *names: VMs) -> Result:
    """Let paused virtual machines go on.

    :param names: the machines: names, ids, keys, or patterns such as 'web*'
    """
    return await act(ctx, targets(ctx, names, "resume"), "resume")


@command("undefine")
async def undefine(ctx: ShellContext, *names: VMs) -> Result:
    """Take virtual machines that are off from their hosts, keeping their disks.

    :param names: the machines: names, ids, keys, or patterns such as 'web*'
    """
    return await act(ctx, targets(ctx, names, "undefine"), "undefine")


@command("migrate")
async def migrate(
    ctx: ShellContext, name: Annotated[str, Names(type="vm")], host: Annotated[str, Host()]
) -> Result:
    """Move a virtual machine to another host while it runs.

    :param name: the machine
    :param host: where it is to run
    """
    target = _host(ctx, host)
    return await act(ctx, targets(ctx, [name], "migrate"), "migrate", host=target)
