"""`alitok app` before the browser: what it opens, what it says, and that it asks for gradio."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from alitok.cli import main


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    return errors


def test_without_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert "run `alitok demo` first" in refused(["app"], capsys)


def test_without_gradio(artifacts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "gradio" else find(name, *more)
    )
    words = ["app", "--generator", str(artifacts / "generator"), "--tokenizer", str(artifacts / "tokenizer")]
    assert "pip install 'alitok[app]'" in refused(words, capsys)


def test_a_port_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--port must be 1 to 65535, not 70000" in refused(["app", "--port", "70000"], capsys)


def test_nothing_but_the_page_needs_gradio() -> None:
    script = "import sys; sys.modules['gradio'] = None; import alitok, alitok.app.desk, alitok.commands.app"
    subprocess.run([sys.executable, "-c", script], check=True)
