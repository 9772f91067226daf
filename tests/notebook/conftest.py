"""Notebooks are executed by the Python that runs the tests, whatever kernels are installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="vagoth[notebook] is not installed")
pytest.importorskip("nbclient", reason="vagoth[notebook] is not installed")
pytest.importorskip("ipykernel", reason="vagoth[notebook] is not installed")

Execute = Callable[..., Any]


@pytest.fixture
def execute(tmp_path: Path) -> Execute:
    """Execute a notebook in a process of its own; return it with its outputs."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class OwnPython(KernelSpecManager):  # type: ignore[misc,unused-ignore]
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, display_name="tests", language="python")

    class OwnKernel(AsyncKernelManager):  # type: ignore[misc,unused-ignore]
        def __init__(self, **settings: Any) -> None:
            # ipc and not tcp: no port of this machine is opened, and nothing is warned about.
            settings |= {"transport": "ipc", "ip": str(tmp_path / "kernel")}
            super().__init__(kernel_spec_manager=OwnPython(), **settings)

    def run(notebook: Any, *, allow_errors: bool = False) -> Any:
        client = NotebookClient(
            notebook,
            kernel_manager_class=OwnKernel,
            timeout=60,
            allow_errors=allow_errors,
            resources={"metadata": {"path": str(tmp_path)}},
        )
        return client.execute()

    return run
