"""Where nodes are kept: the contract (:mod:`vagoth.registry.base`) and its implementations."""
