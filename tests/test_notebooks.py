"""Every notebook runs from top to bottom without a network, and is committed without outputs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import install
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = ("01_data_and_schema",)  # the others train, and take longer on a busy machine
INSTALL = '%pip install -q "llmrs_lightning[demo,lab] @ git+https://github.com/llmrs-lightning/llmrs_lightning"'

# what the reader is to see, by notebook
SHOWN = {
    "01_data_and_schema": [
        "3 problems in the tables",
        "distinct item texts",
        r"LEAK",
        "exit codes: with the column 1 and without 0",
        r"best possible AUC: 0\.90",
    ],
    "02_joint_training_from_python": [
        "fused, joint",
        "weights learn",
        r"\(new user\)",
        "run directory  runs/recipes/first",
    ],
    "03_comparing_fusion_strategies": [
        "fusion/boosting_lambdarank",
        "p, Holm",
        r"\| fusion/simplex \|",
        "toprule",
        "kB",
    ],
    "04_reading_a_recommendation": ["weight of semantic", "user_training_rows", "moved up by", "of the same subject"],
    "05_own_data_set_and_scorer": ["grid equals forward on 80 pairs", "distance", "popularity", "did you mean 'size'"],
}


def read(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell: nbformat.NotebookNode) -> str:
    """Return what a cell shows, as plain text without colours."""
    shown = []
    for output in cell.outputs:
        data = output.get("data", {})
        shown.append(output.get("text") or data.get("text/markdown") or data.get("text/plain", ""))
    return re.sub(r"\x1b\[[\d;]*m", "", "\n".join(shown))


def test_there_is_something_to_see_in_each() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(SHOWN)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs(path: Path) -> None:
    notebook = read(path)
    for cell in code(notebook):
        assert cell.outputs == []
        assert cell.execution_count is None
        assert not cell.metadata
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_says_what_it_teaches_and_installs_itself_where_it_has_to(path: Path) -> None:
    notebook = read(path)
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "You will learn" in first.source
    assert "on a CPU" in first.source
    lines = code(notebook)[0].source.splitlines()
    assert lines[2].startswith('if find_spec("llmrs_lightning") is None:')
    assert lines[3].strip() == INSTALL
    assert 10 <= len(notebook.cells) <= 16


def test_text_of_a_cell_holds_what_is_printed_and_shown() -> None:
    output = nbformat.v4.new_output
    cell = nbformat.v4.new_code_cell(
        outputs=[
            output("stream", name="stdout", text="\x1b[1mbold\x1b[0m"),
            output("display_data", data={"text/plain": "<object>", "text/markdown": "| a |"}),
        ]
    )
    assert text_of(cell) == "bold\n| a |"


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[] if p.stem in QUICK else pytest.mark.slow, id=p.stem) for p in NOTEBOOKS],
)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cell raises, the asserts of the last cell included, and nothing is written beside the notebook."""
    prefix, work = tmp_path / "prefix", tmp_path / "work"
    work.mkdir()
    install(prefix=str(prefix), kernel_name="python3")  # so that the kernel is this interpreter whatever is installed
    monkeypatch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "TMPDIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook, before = read(path), path.read_bytes()
    probe = nbformat.v4.new_code_cell("import sys\n\nprint(sys.executable)")
    notebook.cells.append(probe)
    client = NotebookClient(notebook, kernel_name="python3", timeout=600, resources={"metadata": {"path": str(work)}})
    client.execute()
    shown = "\n".join(text_of(cell) for cell in code(notebook))
    assert text_of(notebook.cells[-1]).strip() == sys.executable
    missing = [pattern for pattern in SHOWN[path.stem] if not re.search(pattern, shown)]
    assert not missing, shown[-4000:]
    assert not list(work.iterdir())
    assert path.read_bytes() == before
