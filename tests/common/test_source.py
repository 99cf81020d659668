"""The digest of source follows what code does."""

from pathlib import Path

import pytest

from alitok.common.source import code_digest

PLAIN = """
def scaled(value: float, by: float = 2.0) -> float:
    if by:
        value = value * by
    return f"{value:.2f}"
"""


def digest(folder: Path, text: str) -> str:
    (folder / "part.py").write_text(text)
    return code_digest(folder / "part.py")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\ndef scaled", '"""What it is."""\n\n\n# a comment\ndef scaled'),
        ("    if by", '    """Scaled.\n\n    By a factor.\n    """\n    if by'),
        ("value * by", "value * by  # of both"),
        ("value: float, by: float = 2.0", "\n    value: float,\n    by: float = 2.0"),
        ("value * by", "value   *  by"),
    ],
)
def test_explanations_and_layout_change_nothing(tmp_path: Path, old: str, new: str) -> None:
    assert old in PLAIN
    assert digest(tmp_path, PLAIN.replace(old, new)) == digest(tmp_path, PLAIN)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.0", "3.0"),
        ("value * by", "value + by"),
        ("        value = ", "        pass\n    value = "),
        (".2f", ".3f"),
        ("def scaled", "def larger"),
        ("return f", "print('x')\n    return f"),
    ],
)
def test_code_changes_it(tmp_path: Path, old: str, new: str) -> None:
    assert old in PLAIN
    assert digest(tmp_path, PLAIN.replace(old, new)) != digest(tmp_path, PLAIN)
