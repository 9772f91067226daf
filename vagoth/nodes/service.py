"""Service: something that is made of other nodes, its members."""

from __future__ import annotations

from vagoth.nodes.base import Node


class Service(Node):
    """A service as an entry of the registry: ``links={"members": [web1, web2]}``.

    Its definition may hold anything, and its state is the user's to set.
    """

    type = "service"
