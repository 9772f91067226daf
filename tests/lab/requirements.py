"""Whether this machine can carry a lab, and what its hardware can do."""

import functools
import os
import re
import subprocess
from pathlib import Path

from tests.lab import guest

PACKAGES = Path(__file__).with_name("packages.txt")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def lab_unavailable() -> str | None:
    """Why no lab can be made on this machine, or None if one can; found out once per process."""
    if os.geteuid() != 0:
        return "not root"
    if missing := _missing_packages():
        return f"missing packages: {' '.join(missing)} (tests/lab/install installs them)"
    return _namespace_trouble()


def _missing_packages() -> list[str]:
    wanted = re.findall(r"^(\w\S*)(?: +(unpack))?", PACKAGES.read_text(), re.MULTILINE)
    installed = [name for name, unpack in wanted if not unpack]
    try:
        known = subprocess.run(
            ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\\n", *installed],
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout.splitlines()
    except OSError:
        return installed
    missing = [name for name in installed if f"{name} installed" not in known]
    if not (guest.KERNEL_FILES / "complete").exists():
        missing += [name for name, unpack in wanted if unpack]
    return missing


def _namespace_trouble() -> str | None:
    attempt = "mount -t sysfs none /sys && ip link add a0 type bridge && ip link add b0 type veth"
    try:
        subprocess.run(
            [
                *("unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork"),
                *("--mount-proc", "sh", "-c", attempt),
            ],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except subprocess.CalledProcessError as error:
        return f"cannot create network namespaces: {error.stderr.strip()}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"cannot create network namespaces: {error}"
    return None


def kvm_is_broken(timeout_s: float = 10) -> bool:
    """Whether there is a KVM device with which no guest boots; found out once per machine boot.

    That the device answers proves little: under some hypervisors a guest starts, and then takes
    minutes to get nowhere, as does libvirt's probe.
    """
    if not Path("/dev/kvm").exists():
        return False
    if not re.search(r"^flags.*\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
        return True
    verdict = guest.CACHE / f"kvm-{BOOT_ID.read_text().strip()}"
    if not verdict.exists():
        verdict.write_text("works" if _boots_with_kvm(timeout_s) else "fails")
    return verdict.read_text() == "fails"


def _boots_with_kvm(timeout_s: float) -> bool:
    machine = ["-accel", "kvm", "-m", "128", "-nodefaults", "-display", "none", "-serial", "stdio"]
    boot = ["-kernel", str(guest.kernel()), "-initrd", str(guest.initrd())]
    try:
        shown = subprocess.run(
            ["qemu-system-x86_64", *machine, *boot, "-append", guest.CMDLINE, "-no-reboot"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
        ).stdout
    except subprocess.TimeoutExpired as error:
        # The guest stays up, so its time always runs out; what counts is how far it came.
        shown = error.stdout or b""
    return b"BOOTED" in shown
