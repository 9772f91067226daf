"""Vagoth: an agentless cluster controller for libvirt hosts."""

__version__ = "0.1.0.dev0"
