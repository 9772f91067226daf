"""What stands in the configuration files of a host, as text."""

import uuid

SSHD_CONFIG = """\
ListenAddress {address}
HostKey /etc/ssh/ssh_host_ed25519_key
PidFile /run/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
AllowStreamLocalForwarding {socket_forwarding}
Subsystem sftp internal-sftp
"""

QEMU_CONF = """\
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = []
namespaces = []
remember_owner = 0
stdio_handler = "file"
"""

LXC_CONF = """\
security_driver = "none"
"""

NETWORK = """\
<network>
  <name>lan</name>
  <forward mode="bridge"/>
  <bridge name="br0"/>
</network>
"""

POOL = """\
<pool type="dir">
  <name>{name}</name>
  <target><path>{path}</path></target>
</pool>
"""


def sshd_config(address: str, *, allows_socket_forwarding: bool = True) -> str:
    """The daemon's settings; sftp is built in, so that nothing of the machine's own is run."""
    word = "yes" if allows_socket_forwarding else "no"
    return SSHD_CONFIG.format(address=address, socket_forwarding=word)


def libvirtd_conf(host_uuid: uuid.UUID) -> str:
    """The daemon's settings.

    All hosts have this machine's hardware, so libvirt would give them one and the same UUID, and
    refuse to migrate between what it takes for one host.
    """
    return (
        f'host_uuid = "{host_uuid}"\n'
        'auth_unix_ro = "none"\n'
        'auth_unix_rw = "none"\n'
        'log_outputs = "2:file:/var/log/libvirt/libvirtd.log"\n'
    )


def libvirt_files(host_uuid: uuid.UUID) -> dict[str, str]:
    """What stands in a host's ``/etc/libvirt``, by path; links to autostart are made from it."""
    return {
        "libvirtd.conf": libvirtd_conf(host_uuid),
        "qemu.conf": QEMU_CONF,
        "lxc.conf": LXC_CONF,
        "qemu/networks/lan.xml": NETWORK,
        "storage/default.xml": POOL.format(name="default", path="/var/lib/libvirt/images"),
        "storage/shared.xml": POOL.format(name="shared", path="/var/lib/libvirt/shared"),
    }


AUTOSTART = {
    "qemu/networks/autostart/lan.xml": "/etc/libvirt/qemu/networks/lan.xml",
    "storage/autostart/default.xml": "/etc/libvirt/storage/default.xml",
    "storage/autostart/shared.xml": "/etc/libvirt/storage/shared.xml",
}


def ssh_config(hosts: dict[str, str], key: str, known_hosts: str) -> str:
    """A client's configuration, with each host's name as an alias.

    :param hosts: addresses by name
    """
    return "".join(
        f"Host {name} {address}\n"
        f"    HostName {address}\n"
        "    User root\n"
        f"    IdentityFile {key}\n"
        "    IdentitiesOnly yes\n"
        f"    UserKnownHostsFile {known_hosts}\n"
        "    StrictHostKeyChecking yes\n"
        for name, address in hosts.items()
    )


def hosts_file(hosts: dict[str, str]) -> str:
    """``/etc/hosts``: a migration's source must find its target by the name it gives itself."""
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in hosts.items())]
    return "".join(f"{line}\n" for line in lines)
