"""The driver for libvirt's hosts, near and far: through SSH, with nothing of ours on them.

Importing it costs nothing and needs no libvirt; opening a first session does.
"""

from vagoth.drivers.libvirt.definition import LibvirtHost
from vagoth.drivers.libvirt.driver import LibvirtDriver

__all__ = ["LibvirtDriver", "LibvirtHost"]
