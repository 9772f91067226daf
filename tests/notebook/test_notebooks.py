"""What a notebook can do, shown by executing some, and each that comes with Vagoth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.notebook.conftest import Execute, nbformat

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.timeout(90)


def notebook(*cells: str) -> Any:
    """A notebook of code cells."""
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


def outputs(executed: Any) -> list[list[Any]]:
    """What each cell put out."""
    return [cell.get("outputs", []) for cell in executed.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_runs_from_top_to_bottom(path: Path, execute: Execute) -> None:
    executed = execute(nbformat.read(path, as_version=4))
    texts = str(outputs(executed))
    assert "text/html" in texts


def test_there_is_a_notebook_to_begin_with() -> None:
    assert "01_first_cluster" in [path.stem for path in NOTEBOOKS]


def test_notebooks_are_kept_without_output() -> None:
    """Outputs in the repository would differ at each run, and tell of somebody's machine."""
    for path in NOTEBOOKS:
        assert not any(outputs(nbformat.read(path, as_version=4))), path


def test_the_magic_runs_commands_on_the_cluster_of_the_notebook(execute: Execute) -> None:
    executed = execute(
        notebook(
            "import vagoth\n%load_ext vagoth\n%load_ext vagoth",
            "cluster = await vagoth.connect(store='store.json', sim=2)",
            "%vagoth new web1 memory=128 --tag 'env=<b>'",
            "%vagoth start web1",
            "found = %vagoth list web*\nfound.records[0]['state']",
            "%vagoth list",
            "%vagoth help start",
            "await cluster.close()",
        )
    )
    cells = outputs(executed)
    assert cells[4][0].data["text/plain"] == "'running'"
    table = cells[5][0].data["text/html"]
    assert "web1" in table
    assert "running" in table
    assert "&lt;b&gt;" in table
    assert "<b>hv1</b>" in table
    assert "usage: start" in cells[6][0].data["text/plain"]


def test_without_a_cluster_the_magic_connects_and_keeps_it(execute: Execute) -> None:
    executed = execute(
        notebook(
            "%load_ext vagoth",
            "%vagoth --sim 2 list --type hv",
            "cluster['hv2'].state",
            "await cluster.close()",
        )
    )
    assert outputs(executed)[2][0].data["text/plain"] == "'unseen'"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("%vagoth info hv9", "vagoth: there is no node 'hv9' (did you mean hv1?)"),
        ("%vagoth lst", "vagoth: there is no command 'lst' (did you mean list?)"),
        ("%vagoth list 'x", "a quote is not closed"),
        ("%vagoth watch", "watch is not for notebooks"),
        ("%vagoth --sim 3 list", "--sim would replace the variable cluster"),
    ],
)
def test_what_fails_stops_the_notebook_with_one_line(
    line: str, told: str, execute: Execute
) -> None:
    executed = execute(
        notebook("%load_ext vagoth", "%vagoth --sim 1 list", line), allow_errors=True
    )
    [error] = outputs(executed)[2]
    assert error.output_type == "error"
    assert len(error.traceback) == 1
    assert told in error.traceback[0]
