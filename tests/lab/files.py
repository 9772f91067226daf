"""The files a host has for itself, and where on the host each takes the machine's place."""

import pwd
import shutil
import uuid
from pathlib import Path

from tests.lab import guest, settings
from tests.lab.namespace import Mounts

# Where a host's own folders lie in its state, and where they appear on the host.
FOLDERS = {
    "etc": "/etc/libvirt",
    "lib": "/var/lib/libvirt",
    "cache": "/var/cache/libvirt",
    "log": "/var/log",
    "ssh": "/etc/ssh",
    "home": pwd.getpwuid(0).pw_dir,
}
INNER_FOLDERS = ("log/libvirt/qemu", "lib/images", "lib/shared", "home/.ssh")

CONTAINER_INIT = """\
#!/bin/sh
trap 'exit 0' TERM
echo BOOTED
while :; do sleep 3600 & wait; done
"""


def write(state: Path, host_uuid: uuid.UUID, hostname: str) -> None:
    """Write all of a host's files that do not depend on the other hosts."""
    for folder in (*FOLDERS, *INNER_FOLDERS):
        (state / folder).mkdir(parents=True, mode=0o700)
    for path, text in settings.libvirt_files(host_uuid).items():
        target = state / "etc" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    for path, points_to in settings.AUTOSTART.items():
        link = state / "etc" / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(points_to)
    # Without PAM, sshd lets nobody in whose password is locked, as root's may be on this machine.
    (state / "shadow").write_text("root:*:20000:0:99999:7:::\nsshd:!:20000::::::\n")
    (state / "shadow").chmod(0o600)
    (state / "machine-id").write_text(f"{host_uuid.hex}\n")
    (state / "hostname").write_text(f"{hostname}\n")
    (state / "no-kvm").touch(mode=0o400)


def write_home(state: Path, key: Path, known_hosts: Path) -> None:
    """Let root come in by the lab's key, and go on to the other hosts with it."""
    home = state / "home/.ssh"
    for source, name in (
        (key.with_suffix(".pub"), "authorized_keys"),
        (key, "id_ed25519"),
        (known_hosts, "known_hosts"),
    ):
        (home / name).touch(mode=0o600)
        (home / name).write_bytes(source.read_bytes())


def mounts(
    state: Path, *, groups: dict[str, Path], shared: Path, hosts_file: Path, hides_kvm: bool
) -> Mounts:
    """What to mount on a host, in order.

    :param groups: its cgroups by their controllers
    :param shared: a folder that all hosts have, their pool of that name
    """
    wanted: Mounts = [("none", "/", "private"), ("proc", "/proc", "proc")]
    wanted.append(("sysfs", "/sys", "sysfs"))
    if groups:
        wanted.append(("tmpfs", "/sys/fs/cgroup", "tmpfs"))
    wanted += [(names, f"/sys/fs/cgroup/{names}", "cgroup") for names in groups]
    wanted += [(str(state / folder), place, "bind") for folder, place in FOLDERS.items()]
    wanted.append((str(shared), "/var/lib/libvirt/shared", "bind"))
    wanted.append((str(hosts_file), "/etc/hosts", "bind"))
    for name in ("shadow", "machine-id", "hostname"):
        if Path("/etc", name).is_file():
            wanted.append((str(state / name), f"/etc/{name}", "bind"))
    if hides_kvm:
        # Read-only, and not /dev/null: libvirt would probe QEMU anew at every define.
        wanted.append((str(state / "no-kvm"), "/dev/kvm", "bind-ro"))
    # Last, as they cover what the others may be mounted from.
    return [*wanted, ("tmpfs", "/tmp", "tmpfs"), ("tmpfs", "/run", "tmpfs")]


def write_container_root(root: Path) -> None:
    """Write a container's file system: busybox, and what libvirt mounts over."""
    for folder in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (root / folder).mkdir(parents=True)
    shutil.copy(guest.BUSYBOX, root / "bin/busybox")
    for applet in ("sh", "sleep"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "init").write_text(CONTAINER_INIT)
    (root / "init").chmod(0o755)
