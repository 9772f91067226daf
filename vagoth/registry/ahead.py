"""A view with changes on top that are decided and not yet durable.

Commits that share one write are decided one after the other, each on what those before it will
have made true. The real view must not show that before it is on disk.
"""

from __future__ import annotations

from collections.abc import Callable

from vagoth.model import Record, RecordChange
from vagoth.view import View


class Ahead(View):
    """What :func:`~vagoth.registry.rules.decide` needs of a view, with changes laid over it."""

    def __init__(self, below: View) -> None:
        super().__init__()
        self._below = below
        self._changed: set[str] = set()

    def apply(self, change: RecordChange) -> None:
        """Lay one more change over the view."""
        super().apply(change)
        self._changed.add(change.record.id)

    def get(self, node_id: str) -> Record | None:
        """The record of that id, or nothing."""
        return super().get(node_id) if node_id in self._changed else self._below.get(node_id)

    def by_name(self, name: str) -> Record | None:
        """The record of that name, or nothing."""
        return super().by_name(name) or self._unchanged(self._below.by_name(name))

    def by_key(self, key: str) -> Record | None:
        """The record that holds the key, or nothing."""
        return super().by_key(key) or self._unchanged(self._below.by_key(key))

    def children(self, node_id: str) -> list[Record]:
        """The records whose parent is that node."""
        return self._both(super().children, self._below.children, node_id)

    def linking(self, node_id: str) -> list[Record]:
        """The records that have a link to that node."""
        return self._both(super().linking, self._below.linking, node_id)

    def _unchanged(self, record: Record | None) -> Record | None:
        return None if record is None or record.id in self._changed else record

    def _both(
        self,
        above: Callable[[str], list[Record]],
        below: Callable[[str], list[Record]],
        node_id: str,
    ) -> list[Record]:
        kept = [record for record in below(node_id) if record.id not in self._changed]
        return kept + above(node_id)
