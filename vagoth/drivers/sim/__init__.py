"""Simulated hosts: a real driver, which has no way to any real host.

Each host is one small file in ``DriverSettings.state_dir``, shared by all processes of a
store, so that one command after another meets the same hosts. :class:`SimHost` disturbs one
while it runs::

    host = driver.world("hv1")         # or, in another process: SimHost(state_dir, "hv1")
    host.cut()                         # a black hole, until host.heal()
    host.define_foreign("stranger")    # as somebody with virsh would
"""

from vagoth.drivers.sim.definition import Down, Faults, SimHostDefinition
from vagoth.drivers.sim.driver import SimDriver
from vagoth.drivers.sim.host import SimHost
from vagoth.drivers.sim.session import SimSession

__all__ = ["Down", "Faults", "SimDriver", "SimHost", "SimHostDefinition", "SimSession"]
