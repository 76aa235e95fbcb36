"""The notebook runs from top to bottom, and what it shows is there."""

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient


# The kernel's own thread pool and event loop, which nbclient closes when it is collected.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_run_everything(repository, tmp_path):
    notebook = nbformat.read(repository / "notebooks" / "run_everything.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    metrics = pd.read_csv(tmp_path / "data-unversioned" / "notebook" / "output" / "metrics.csv")
    assert metrics["split"].tolist() == ["trn", "val"]
