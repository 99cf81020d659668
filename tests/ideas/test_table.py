"""docs/ideas.md: a row for every idea, and every link leads to a file."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ideas.md"
NO_IDEA = {"__init__.py"}


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def links(text: str) -> set[Path]:
    return {(PAGE.parent / link).resolve() for link in re.findall(r"\]\((?!http|#)([^)#]+)", text)}


def test_every_file_and_yaml_has_a_row() -> None:
    text = PAGE.read_text("utf-8")
    files = {file for file in (ROOT / "src/alitok/ideas").rglob("*.py") if file.name not in NO_IDEA}
    assert links(text) >= files | set((ROOT / "experiments/ideas").glob("*.yaml"))


def test_links_lead_to_files() -> None:
    assert [str(link) for link in links(PAGE.read_text("utf-8")) if not link.exists()] == []


def test_rows_are_whole() -> None:
    for row in rows():
        assert len(row) == 9, row
        idea, paper, changes, seams, code, files, *_, measured = row
        assert all((idea, paper, changes, seams, code, files, measured)), row


def test_a_row_names_the_papers_of_its_yaml() -> None:
    """The number that a YAML's second line cites stands in a row that links the YAML."""
    for file in (ROOT / "experiments/ideas").glob("*.yaml"):
        cited = re.findall(r"\d{4}\.\d{5}", file.read_text("utf-8").splitlines()[1])
        own = " ".join(" ".join(row) for row in rows() if f"ideas/{file.name}" in row[5])
        assert [number for number in cited if number not in own] == [], file.name
