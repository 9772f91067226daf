"""A guest small enough to boot in seconds without hardware virtualisation.

Debian's cloud kernel, and an initial RAM disk with busybox as all there is. It prints ``BOOTED`` at
its serial port, powers off when its power button is pressed, and then leaves a shell at the port.
On its kernel command line it understands ``vagoth.dirty=N`` (write N MiB of its memory anew each
second) and ``vagoth.tick`` (print ``TICK n`` each second). Before ``BOOTED`` it prints what it has:
``GUEST cpus=1 memory_kib=94800 nics=52:54:00:bf:01:bc disks_kib=vda:65536``. It needs 96 MiB.
"""

import hashlib
import os
import tempfile
from pathlib import Path

from tests.lab.errors import LabError

CACHE = Path("/var/cache/vagoth-lab")
KERNEL_FILES = CACHE / "kernel"
BUSYBOX = Path("/bin/busybox")
CMDLINE = "console=ttyS0 quiet panic=-1"

# Each after those it needs: the package's list of that is only made when it is installed.
MODULES = (
    "drivers/acpi/button.ko",
    "drivers/input/evdev.ko",
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "drivers/block/virtio_blk.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
)

INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /bin
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin
while read -r module; do insmod "/modules/$module"; done </modules/order

# Opened before BOOTED is printed: a press that comes right after it is not lost.
for event in /sys/class/input/event*; do
    [ "$(cat "$event/device/name")" = "Power Button" ] || continue
    exec 3<"/dev/input/${event##*/}"
    { head -c 24 <&3 >/dev/null; echo POWEROFF >/dev/console; poweroff -f; } &
done

set -- $(cat /proc/cmdline)
for word; do
    case $word in
    vagoth.tick)
        { n=0; while sleep 1; do n=$((n + 1)); echo "TICK $n"; done >/dev/console; } &
        ;;
    vagoth.dirty=*)
        dd if=/dev/urandom of=/block bs=1M count=1 2>/dev/null
        while sleep 1; do
            n=${word#*=}
            while [ $((n -= 1)) -ge 0 ]; do cat /block; done 1<>/dirty
        done &
        ;;
    esac
done

nics=$(for nic in /sys/class/net/e*/address; do [ -e "$nic" ] && cat "$nic"; done)
disks=$(cd /sys/block; for d in [vs]d*; do [ -e "$d" ] && echo "$d:$(($(cat $d/size) / 2))"; done)
echo "GUEST cpus=$(nproc) memory_kib=$(sed -n 's/MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo)" \\
    "nics=$(echo $nics) disks_kib=$(echo $disks)"
echo BOOTED
while :; do setsid cttyhack sh; done
"""


def kernel() -> Path:
    """The kernel's image, as ``tests/lab/install`` unpacked it.

    :raises LabError: it has not been
    """
    images = sorted(KERNEL_FILES.glob("boot/vmlinuz-*"))
    if not images:
        raise LabError("the guest's kernel is missing: run tests/lab/install")
    return images[0]


def initrd() -> Path:
    """The RAM disk that goes with the kernel, built when its parts have changed.

    :raises LabError: a part is missing
    """
    version = kernel().name.removeprefix("vmlinuz-")
    tree = KERNEL_FILES / "lib/modules" / version
    try:
        content = _archive([tree / "kernel" / module for module in MODULES])
    except OSError as error:
        raise LabError(f"cannot build the guest's initial RAM disk: {error}") from error
    path = CACHE / f"initrd-{hashlib.sha256(content).hexdigest()[:16]}"
    if not path.exists():
        # Complete before it has its name: two labs may build it at the same time.
        with tempfile.NamedTemporaryFile(dir=CACHE, prefix="initrd.", delete=False) as new:
            new.write(content)
        os.rename(new.name, path)
    return path


def _archive(modules: list[Path]) -> bytes:
    entries = [
        _entry("bin", 0o40755),
        _entry("modules", 0o40755),
        _entry("dev", 0o40755),
        # Until /dev is mounted, the kernel needs this one for what init prints.
        _entry("dev/console", 0o20600, device=(5, 1)),
        _entry("bin/busybox", 0o100755, BUSYBOX.read_bytes()),
        _entry("init", 0o100755, INIT.encode()),
    ]
    order = []
    for module in modules:
        order.append(f"{module.name}\n")
        entries.append(_entry(f"modules/{module.name}", 0o100644, module.read_bytes()))
    entries.append(_entry("modules/order", 0o100644, "".join(order).encode()))
    return b"".join([*entries, _entry("TRAILER!!!", 0)])


def _entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """A file in the kernel's archive format, cpio's "newc"."""
    encoded = name.encode() + b"\0"
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
