"""Gradio is imported without writing into its own package. A small package of that name stands in for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# module of gradio: its source, and a use of its function on gradio's import
WRITES = {
    "component_meta": (
        "def create_or_modify_pyi(*_):\n    raise OSError('this folder cannot be written')\n",
        "component_meta.create_or_modify_pyi(int, 'Int', [])\n",
    ),
    "utils": (
        "def get_hash_seed():\n    raise OSError('this folder cannot be written')\n",
        "assert utils.get_hash_seed() != utils.get_hash_seed()\n",
    ),
}
SCRIPT = """import sys
from alitok.app.read_only import import_read_only
before = list(sys.meta_path)
import_read_only()
assert sys.modules["gradio"].VERSION == 7
assert sys.meta_path == before
"""


def imported(tmp_path: Path, script: str) -> None:
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONPATH": paths})


def package(tmp_path: Path, module: str, source: str | None, use: str) -> None:
    folder = tmp_path / "gradio"
    folder.mkdir()
    begin = "" if source is None else f"from gradio import {module}\n"
    (folder / "__init__.py").write_text(f"{begin}{use}VERSION = 7\n")
    if source is not None:
        (folder / f"{module}.py").write_text(source)


@pytest.mark.parametrize("module", WRITES)
def test_functions_that_write_are_replaced(tmp_path: Path, module: str) -> None:
    package(tmp_path, module, *WRITES[module])
    imported(tmp_path, SCRIPT)
    with pytest.raises(subprocess.CalledProcessError):
        imported(tmp_path, "import gradio")  # it would have been called


@pytest.mark.parametrize("module", WRITES)
@pytest.mark.parametrize("source", ["", None])
def test_a_gradio_without_them_is_imported(tmp_path: Path, module: str, source: str | None) -> None:
    package(tmp_path, module, source, "")
    imported(tmp_path, SCRIPT)
