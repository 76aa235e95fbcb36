"""The notebook runs from top to bottom, smaller, and what is saved in it is a whole run."""

import re

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

#: Its settings, made smaller.
SMALLER = {"SCANS": 4, "CANDIDATES": 12, "EPOCHS": 1, "SAMPLES": 16, "WORKERS": 0, "IN_PLANE": 192}


@pytest.fixture
def notebook(repository):
    return nbformat.read(repository / "notebooks" / "run_everything.ipynb", as_version=4)


def outputs_of(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


# The kernel's own thread pool and event loop, which nbclient closes when it is collected.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_run_everything(notebook, tmp_path):
    settings = notebook.cells[1]
    for name, value in SMALLER.items():
        settings.source, changed = re.subn(rf"^{name} = \d+", f"{name} = {value}", settings.source, flags=re.MULTILINE)
        assert changed == 1, name
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = outputs_of(notebook)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    folder = tmp_path / "data-unversioned" / "notebook"
    for name in ("book", "balanced"):
        assert pd.read_csv(folder / name / "metrics.csv")["split"].tolist() == ["trn", "val"]


def test_the_saved_notebook_is_a_complete_run(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = outputs_of(notebook)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    text = "".join(output.get("text", "") for output in outputs)
    assert re.search(r"E1 val_pos .* 0\.0% correct \(0 of \d+\)", text)  # the trap
    assert "/tmp/" not in text
    assert "/root" not in text
