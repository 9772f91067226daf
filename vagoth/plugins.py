"""Finding classes by name: built in, named in vagoth.toml, or offered as an entry point.

A name in vagoth.toml goes before an entry point, and that before what is built in, so each
part can be replaced. Entry points are read only when a name is not found otherwise, or when
all names are asked for: reading them costs what half a command costs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from vagoth.errors import InvalidInput, VagothError, nearest

T = TypeVar("T")


def load(reference: str, *, field: str, below: Path | None = None) -> Any:
    """The object that ``module:name`` names.

    :param field: what an error says is wrong: the place of the reference
    :param below: a folder in which modules are looked for too, after all others
    :raises InvalidInput: no such module or name, or the module fails when imported
    """
    module_name, colon, name = reference.partition(":")
    if not (module_name and colon and name):
        raise InvalidInput(field, reference, "module:name")
    if below is not None and str(below) not in sys.path:
        sys.path.append(str(below))
    try:
        module = importlib.import_module(module_name)
        return getattr(module, name)
    except VagothError:
        raise
    except Exception as error:
        raise InvalidInput(
            field,
            reference,
            "importable",
            message=f"{field}: {reference} cannot be used: {type(error).__name__}: {error}",
        ) from error


class Plugins(Generic[T]):
    """The classes of one sort (drivers, node types) by name, each imported when first asked for.

    :param sort: the section of vagoth.toml, and the entry point group behind ``vagoth.``
    :param base: what each class must inherit
    """

    def __init__(
        self,
        sort: str,
        base: type[T],
        *,
        built_in: Mapping[str, str],
        configured: Mapping[str, str],
        below: Path | None = None,
    ) -> None:
        self.sort = sort
        self._base = base
        self._below = below
        self._references = {**built_in, **configured}
        self._built_in = built_in
        self._configured = configured
        self._loaded: dict[str, type[T]] = {}
        self._scanned = False

    def names(self) -> list[str]:
        """Every name there is, sorted."""
        self._scan()
        return sorted(self._references)

    def get(self, name: str, *, field: str) -> type[T]:
        """The class of that name.

        :param field: the field of the user's that holds the name
        :raises InvalidInput: there is none; the error holds the nearest name
        """
        if name not in self._references:
            self._scan()
        if name not in self._references:
            known = self.names()
            near = nearest(name, known)
            raise InvalidInput(
                field,
                name,
                f"one of {', '.join(known)}",
                cure=f"did you mean {near}?" if near else "",
            )
        if name not in self._loaded:
            found = load(self._references[name], field=f"{self.sort}.{name}", below=self._below)
            if not (isinstance(found, type) and issubclass(found, self._base)):
                raise InvalidInput(
                    f"{self.sort}.{name}",
                    self._references[name],
                    f"a class that inherits {self._base.__module__}.{self._base.__name__}",
                )
            self._loaded[name] = found
        return self._loaded[name]

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        from importlib.metadata import entry_points

        for entry in entry_points(group=f"vagoth.{self.sort}"):
            if entry.name not in self._configured:
                self._references[entry.name] = entry.value
