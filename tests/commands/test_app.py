"""`alitok app` before the browser: what it opens, what it says, and that it asks for gradio."""

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alitok.app.opened import Opened
from alitok.cli import main
from alitok.common.devices import float32_products
from alitok.common.ends import Terminated


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


class Served:
    """Stands in for the page, which needs gradio."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.folder = Path()

    def serve(self, opened: Opened, *where: object) -> None:
        self.calls.append((list(opened.generators), list(opened.tokenizers), *where))
        self.folder = Path(os.environ["GRADIO_TEMP_DIR"])
        assert self.folder.is_dir()
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        (self.folder / "upload.png").write_bytes(b"x")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    page = Served()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: find("json" if name == "gradio" else name))
    monkeypatch.setitem(sys.modules, "alitok.app.page", page)  # type: ignore[arg-type]
    monkeypatch.setattr("alitok.app.read_only.import_read_only", lambda: None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY", "MPLBACKEND"):
        monkeypatch.setenv(name, "before")
    return page


def test_it_listens_on_this_machine_unless_asked(
    artifacts: Path, served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = str(artifacts / "tokenizer")
    main(["app", "--tokenizer", tokenizer, "--device", "cpu"])
    loopback = ("127.0.0.1", "localhost")
    assert served.calls == [([], [tokenizer], "127.0.0.1", None, loopback)]
    assert "anyone" not in capsys.readouterr().out
    assert not served.folder.exists()  # with what was uploaded

    main(["app", "--tokenizer", tokenizer, "--device", "cpu", "--host", "0.0.0.0", "--port", "8000"])
    assert served.calls[1][2:] == ("0.0.0.0", 8000, ("*",))
    said = capsys.readouterr().out
    assert "listening on 0.0.0.0: anyone who reaches this port can use the models and upload pictures" in said


@pytest.mark.parametrize(("kind", "precision"), [("cuda", "high"), ("cpu", "highest")])
def test_a_gpu_draws_in_tf32_as_the_command_does(
    served: Served, monkeypatch: pytest.MonkeyPatch, kind: str, precision: str
) -> None:
    seen = []

    def open_models(generators: list[str], tokenizers: list[str], device: torch.device) -> Opened:
        seen.append((device.type, torch.get_float32_matmul_precision()))
        return Opened({}, {}, [], device)

    monkeypatch.setattr("alitok.common.devices.pick_device", lambda name: torch.device(kind))
    monkeypatch.setattr("alitok.app.opened.open_models", open_models)
    with float32_products(tf32=False):  # sets it back
        main(["app", "--tokenizer", "any"])
    assert seen == [(kind, precision)]


def test_the_demo_opens_by_itself(
    artifacts: Path, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ours, theirs in (("tokenizer", "stage2"), ("generator", "generator")):
        shutil.copytree(artifacts / ours, tmp_path / "runs" / "demo" / theirs / "artifact")
    monkeypatch.chdir(tmp_path)
    main(["app", "--device", "cpu"])
    assert served.calls[0][:2] == (["runs/demo/generator/artifact"], ["runs/demo/stage2/artifact"])


@pytest.mark.parametrize("host", ["999.1.1.1", "192.0.2.1", "", "no host", "x" * 300])
def test_a_host_that_is_no_address_of_this_machine(
    artifacts: Path, served: Served, capsys: pytest.CaptureFixture[str], host: str
) -> None:
    said = refused(["app", "--tokenizer", str(artifacts / "tokenizer"), "--host", host], capsys)
    assert f"--host {host!r} is no address of this machine; give 127.0.0.1" in said
    assert not served.calls


def test_a_port_that_is_taken(artifacts: Path, served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused(["app", "--tokenizer", str(artifacts / "tokenizer"), "--port", str(port)], capsys)
    assert said == f"alitok: 127.0.0.1:{port} is taken; choose another --port.\n"
    assert not served.calls


@pytest.mark.parametrize(("end", "status"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_its_end_is_quiet(
    artifacts: Path,
    served: Served,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    end: type[BaseException],
    status: int,
) -> None:
    def serve(*_: object) -> None:
        raise end

    monkeypatch.setattr(served, "serve", serve)
    with pytest.raises(SystemExit) as ended:
        main(["app", "--tokenizer", str(artifacts / "tokenizer"), "--device", "cpu"])
    assert ended.value.code == status
    assert capsys.readouterr().err == ""
