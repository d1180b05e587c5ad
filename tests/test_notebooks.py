"""The notebooks run from end to end, without a warning of npbench, and are kept without outputs."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What each takes at the most, in seconds of a busy machine.
TIMEOUT = 600
# As npbench shows one, and as Python shows one of npbench's code, or of a cell's.
WARNING = re.compile(
    rf"npbench: warning|DataWarning: "
    rf"|({re.escape(str(ROOT))}/(npbench|datamodules)/|ipykernel_\d+/)\S*\.py:\d+: \w*Warning"
)

notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def warnings_of_npbench(notebook: nbformat.NotebookNode) -> list[str]:
    """The warnings in the outputs that npbench gives, or that the cells themselves get."""
    streams = [
        output.text
        for cell in notebook.cells if cell.cell_type == "code"
        for output in cell.outputs if output.output_type == "stream"
    ]  # fmt: skip
    return [line for text in streams for line in text.splitlines() if WARNING.search(line)]


def run(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, after a kernel of this interpreter has run it there.

    Raises:
        CellExecutionError: if a cell raises an error.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from nbclient import NotebookClient

    class ThisInterpreter(KernelSpecManager):
        """Knows one kernel, whatever is installed on the machine."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=argv, display_name=kernel_name, language="python")

    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisInterpreter())
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, timeout=TIMEOUT, km=manager, resources=resources).execute()


@pytest.fixture
def in_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels import this npbench, find its command, and take one thread."""
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *([known] if known else [])]))
    scripts = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([scripts, os.environ["PATH"]]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@notebooks
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs, f"{cell.id} has outputs; clear them before you commit"
            assert cell.execution_count is None, cell.id


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_kernel")
@notebooks
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    done = run(nbformat.read(path, as_version=4), tmp_path)
    assert not warnings_of_npbench(done)


@pytest.mark.slow
@pytest.mark.usefixtures("in_a_kernel")
def test_a_warning_in_a_kernel_of_this_interpreter_is_found(tmp_path: Path) -> None:
    source = (
        "import sys, warnings\n"
        "from npbench.errors import DataWarning\n"
        "print(sys.executable)\n"
        "warnings.warn('y is old', FutureWarning)\n"
        "warnings.warn('x is far outside', DataWarning)"
    )
    cell = nbformat.v4.new_code_cell(source)
    done = run(nbformat.v4.new_notebook(cells=[cell]), tmp_path)
    assert done.cells[0].outputs[0].text.strip() == sys.executable
    of_y, of_x = warnings_of_npbench(done)
    assert of_y.endswith("FutureWarning: y is old")
    assert of_x.endswith("DataWarning: x is far outside")
