"""Nodes as users hold them: live handles on records. Inherit :class:`~vagoth.nodes.base.Node`."""
