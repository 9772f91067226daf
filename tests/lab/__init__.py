"""Real hosts on one machine, to test against: see :class:`Lab`.

``python -m tests.lab up`` brings some up to play with; ``tests/lab/install`` installs what they
need. Each host is a set of kernel namespaces with its own sshd and libvirtd, guests are QEMU's, and
nothing of it is simulated but the distance between them.
"""

from tests.lab.errors import CommandFailed, LabError
from tests.lab.host import LabHost
from tests.lab.lab import Lab
from tests.lab.requirements import lab_unavailable

__all__ = ["CommandFailed", "Lab", "LabError", "LabHost", "lab_unavailable"]
