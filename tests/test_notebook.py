"""The notebook of docs/ runs from its first cell to its last, and says what its text promises."""

from pathlib import Path

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow  # it starts a kernel

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "first_steps.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after its execution in an empty folder, with this checkout's `dl`."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        client.execute()
    return notebook, folder


def printed_by(notebook, line):
    """Returns what the cell that has a line of code printed."""
    [cell] = [cell for cell in notebook.cells if cell.cell_type == "code" and line in cell.source]
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def test_it_runs_to_its_end_and_learns(executed):
    notebook, folder = executed
    percent = float(printed_by(notebook, "accuracy = result.metrics").split()[2].rstrip("%"))
    assert percent > 80
    assert (folder / "runs" / "first_steps" / "result.json").exists()


def test_a_loaded_run_predicts_what_the_result_predicted(executed):
    notebook, _ = executed
    digits = [
        [line.partition("[")[2] for line in printed_by(notebook, line).splitlines() if "predicted" in line]
        for line in ("logits = result.predict", "run = dl.load_run(")
    ]
    assert digits[0] == digits[1] != []


def test_training_without_a_folder_writes_nothing(executed):
    _, folder = executed
    assert [path.name for path in (folder / "runs").iterdir()] == ["first_steps"]


def test_the_stored_notebook_shows_its_outputs():
    """Code hosts show what is stored; `jupyter execute --inplace docs/first_steps.ipynb` fills it in."""
    stored = nbformat.read(NOTEBOOK, as_version=4)
    assert all(cell.execution_count for cell in stored.cells if cell.cell_type == "code")
