"""What ``import vagoth`` offers, and what it costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import vagoth
from vagoth import errors


def test_all_names_every_public_name_and_no_other() -> None:
    offered = {name for names in vagoth._HOMES.values() for name in names}
    assert offered == set(vagoth.__all__) - {"__version__", "load_ipython_extension"}
    assert list(vagoth.__all__) == sorted(set(vagoth.__all__), key=_isort_key)
    for module, names in vagoth._HOMES.items():
        for name in names:
            assert getattr(vagoth, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        vagoth.nothing  # noqa: B018 - it is the look-up that is tested


def test_type_checkers_see_the_names_where_they_really_are() -> None:
    assert vagoth.__file__ is not None
    tree = ast.parse(Path(vagoth.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("vagoth")
        for alias in node.names
    }
    assert seen == vagoth._MODULES


def _isort_key(name: str) -> tuple[int, str]:
    kind = 0 if name.isupper() else 1 if name[0].isupper() else 2
    return kind, name


def test_every_error_is_offered() -> None:
    tree = {name for name, value in vars(errors).items() if _is_error(value)}
    assert tree <= set(vagoth.__all__)


def test_the_tree_at_the_top_of_errors_is_the_real_one() -> None:
    assert errors.__doc__ is not None
    drawn = {}
    for line in errors.__doc__.splitlines():
        words = line.replace("│", " ").replace("├──", " ").replace("└──", " ").split()
        if words and hasattr(errors, words[0]) and words[1:]:
            drawn[words[0]] = words[1]
    real = {name: value for name, value in vars(errors).items() if _is_error(value)}
    assert set(drawn) == set(real)
    for name, code in drawn.items():
        if code.isdigit():
            assert real[name].exit_code == int(code), name


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, errors.VagothError)


def test_importing_an_error_imports_no_cluster() -> None:
    script = "import sys, vagoth.errors; print('asyncio' in sys.modules, 'msgspec' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False False", done.stderr


def test_importing_the_sdk_leaves_heavy_parts_alone() -> None:
    script = (
        "import sys, vagoth; vagoth.connect; heavy = {'asyncssh', 'libvirt', 'lxml', 'rich',"
        " 'prompt_toolkit', 'IPython', 'cyclopts', 'pandas'};"
        " print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
