"""Finding the socket of a host's libvirt daemon, and saying why it is not to be had."""

from __future__ import annotations

from collections.abc import Sequence

from vagoth.drivers.libvirt.definition import LibvirtHost
from vagoth.drivers.libvirt.errors import refused_user
from vagoth.errors import HostError, HypervisorUnavailable, OutcomeUnknown
from vagoth.ssh import Passed, SSHConnection

START_LIBVIRTD = "on the host: systemctl enable --now libvirtd"

# For each socket that is there: whether somebody listens, whether we may write to it, its path.
# A socket that a dead daemon left behind is there, and nobody listens.
_LOOK = """
for path do
  [ -S "$path" ] || continue
  listens=no
  while read -r line; do
    case $line in *"/${path##*/}") listens=yes ;; esac
  done </proc/net/unix
  [ -w "$path" ] && open=yes || open=no
  echo "$listens $open $path"
done
"""


def candidates(definition: LibvirtHost) -> Sequence[str]:
    """Where a host's daemon may listen, the likeliest first."""
    if definition.socket is not None:
        return (definition.socket,)
    return (
        "/var/run/libvirt/libvirt-sock",
        "/run/libvirt/libvirt-sock",
        f"/run/libvirt/virt{definition.kind}d-sock",
    )


async def find_socket(
    ssh: SSHConnection, definition: LibvirtHost, *, timeout_s: float, passed: Passed
) -> str:
    """The path of a socket that takes our connections.

    :raises HypervisorUnavailable: there is none; says whether libvirt is missing, is stopped, is
        closed to this user, or SSH does not let us through
    """
    if definition.socket is None and definition.uri.endswith("/session"):
        raise HypervisorUnavailable(
            ssh.host_name,
            f"where the daemon of {definition.uri} listens depends on the user",
            cure="give its path as socket, such as /run/user/1000/libvirt/libvirt-sock",
        )
    paths = candidates(definition)
    for path in paths:
        if await ssh.can_reach_socket(path, timeout_s=timeout_s):
            passed("libvirtd", f"listens at {path}")
            passed("socket", f"open to {ssh.user}")
            passed("socket forwarding", "sshd forwards it")
            return path
    raise await _why_not(ssh, paths, timeout_s, passed)


async def _why_not(
    ssh: SSHConnection, paths: Sequence[str], timeout_s: float, passed: Passed
) -> HostError:
    """Look at the sockets from the host itself: sshd gives one answer to all that goes wrong."""
    host, places = ssh.host_name, " or ".join(paths)
    try:
        result = await ssh.run(["sh", "-c", _LOOK, "sh", *paths], timeout_s=timeout_s)
    except OutcomeUnknown as error:
        return HypervisorUnavailable(host, f"no socket at {places} answers, and {error.message}")
    found = [line.split(" ", 2) for line in result.stdout.splitlines() if line.count(" ") >= 2]
    listening = [(path, is_open == "yes") for listens, is_open, path in found if listens == "yes"]
    if not found:
        return HypervisorUnavailable(
            host,
            f"libvirt is not there: no socket at {places}",
            cure="install it there and start it: apt install libvirt-daemon-system; "
            "or give the path of its socket as socket",
        )
    if not listening:
        problem = f"libvirtd is not running: nobody listens at {found[0][2]}"
        return HypervisorUnavailable(host, problem, cure=START_LIBVIRTD)
    passed("libvirtd", f"listens at {listening[0][0]}")
    if not any(is_open for _, is_open in listening):
        return refused_user(host, f"{listening[0][0]} is closed to it", ssh.user)
    passed("socket", f"open to {ssh.user}")
    return HypervisorUnavailable(
        host,
        f"libvirtd listens at {listening[0][0]}, and sshd does not let us through to it",
        cure="on the host: AllowStreamLocalForwarding yes (and no DisableForwarding) in "
        "/etc/ssh/sshd_config; systemctl reload ssh",
    )
