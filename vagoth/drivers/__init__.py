"""How hypervisors are spoken to: the contract (:mod:`vagoth.drivers.base`) and the drivers."""
