"""What ``vagoth list`` into a pipe may import: start-up is paid at each call from a script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FORBIDDEN = {
    "IPython",
    "asyncssh",
    "cryptography",
    "docstring_parser",
    "jinja2",
    "libvirt",
    "lxml",
    "pandas",
    "prompt_toolkit",
    "pygments",
    "rich",
    "rich_rst",
}
#: What it may import besides Python's own library and Vagoth.
ALLOWED = {"attr", "attrs", "cyclopts", "msgspec", "platformdirs", "tinydb", "typing_extensions"}
#: Parts of Vagoth that other commands need.
NOT_NEEDED = {
    "vagoth.drivers.libvirt",
    "vagoth.drivers.sim",
    "vagoth.notebook",
    "vagoth.shell.app",
    "vagoth.shell.commands.hosts",
    "vagoth.shell.commands.records",
    "vagoth.shell.commands.verbs",
    "vagoth.shell.completion",
    "vagoth.shell.terminal",
    "vagoth.ssh",
}

SCRIPT = """
import sys
from vagoth.shell.main import command_line
assert command_line(sys.argv[1:]).code == 0
print("\\n".join(sorted(sys.modules)), file=sys.stderr)
"""


@pytest.fixture
def imported(store: Path) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "--store", str(store), "list"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert done.stdout.startswith("NAME")
    return set(done.stderr.split())


def test_list_imports_nothing_heavy(imported: set[str]) -> None:
    assert not FORBIDDEN & {name.partition(".")[0] for name in imported}


def test_list_imports_nothing_that_is_not_known_here(imported: set[str]) -> None:
    top = {name.partition(".")[0] for name in imported}
    own = {"vagoth", "__main__", "__mp_main__", "_virtualenv", "_distutils_hack"}
    own |= {"sitecustomize", "usercustomize"}  # what a system adds to each start of Python
    foreign = {
        name for name in top - own - sys.stdlib_module_names if not name.startswith("__editable__")
    }
    assert foreign <= ALLOWED


def test_list_imports_no_part_of_vagoth_that_others_need(imported: set[str]) -> None:
    assert not NOT_NEEDED & imported
