"""`docs/tour.ipynb`: its cells run on small artifacts, and it stays small."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"
LARGEST = 150_000  # bytes, with its pictures


@pytest.fixture
def cells() -> list[dict[str, Any]]:
    return list(json.loads(NOTEBOOK.read_text("utf-8"))["cells"])


def test_its_code_runs_on_what_a_demo_leaves(
    cells: list[dict[str, Any]],
    artifacts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for ours, theirs in (("tokenizer", "stage2"), ("generator", "generator")):
        shutil.copytree(artifacts / ours, tmp_path / "runs" / "demo" / theirs / "artifact")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), space)
    assert "21 tokens of 24 codes for 32 x 32 pixels" in capsys.readouterr().out
    assert space["record"]["held_out"] == 64
    assert not (space["guided"][:, 5:] == space["drawn"][:, 5:]).all()
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_without_the_demo_it_says_what_to_run(
    cells: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    with pytest.raises(SystemExit, match=r"^There is no runs/demo here: run make demo first\.$"):
        exec("".join(first["source"]), {})


def test_it_is_small_and_leads_to_pages_that_are_there(cells: list[dict[str, Any]]) -> None:
    assert NOTEBOOK.stat().st_size <= LARGEST
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (NOTEBOOK.parent / target).is_file()
    assert not [cell for cell in cells for output in cell.get("outputs", []) if output["output_type"] == "error"]
