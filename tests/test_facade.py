"""What ``import vagoth`` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import vagoth
from vagoth import errors


def test_all_names_every_public_name_and_no_other() -> None:
    public = {name for name in vars(vagoth) if not name.startswith("_")}
    modules = {name for name in public if type(getattr(vagoth, name)).__name__ == "module"}
    imported_for_types = {"TYPE_CHECKING", "annotations"}
    assert public - modules - imported_for_types == set(vagoth.__all__) - {"__version__"}
    assert list(vagoth.__all__) == sorted(set(vagoth.__all__), key=_isort_key)


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


def test_importing_the_sdk_leaves_heavy_parts_alone() -> None:
    script = (
        "import sys, vagoth; heavy = {'asyncssh', 'libvirt', 'lxml', 'rich', 'prompt_toolkit',"
        " 'IPython', 'cyclopts', 'pandas'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
