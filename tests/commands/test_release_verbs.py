import argparse
from types import ModuleType

import pytest
import torch

from alitok.artifacts.folder import load_generator
from alitok.commands import export_release, import_release
from alitok.common.errors import BadInput


def run(verb: ModuleType, *arguments: object) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    verb.run(parser.parse_args([str(argument) for argument in arguments]))


def test_import_and_export(tmp_path, monkeypatch, golden, capsys):
    monkeypatch.chdir(tmp_path)
    state = golden.fill(golden.json("official_ar_tiny_keys"))
    torch.save(state, "alitok_tiny.bin")
    run(import_release, "alitok_tiny.bin")
    digest = load_generator("runs/release/alitok_tiny").card["digest"]
    assert capsys.readouterr().out.startswith("runs/release/alitok_tiny: AliTok's public release: generator")
    run(import_release, "alitok_tiny.bin", "--out", "elsewhere")
    assert load_generator("elsewhere").card["digest"] == digest
    run(export_release, "elsewhere", "--out", "back.bin")
    back = torch.load("back.bin", weights_only=True)
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
    assert "back.bin" in capsys.readouterr().out


def test_missing_file(tmp_path):
    with pytest.raises(BadInput, match="There is no file"):
        run(import_release, tmp_path / "none.pth")
    with pytest.raises(BadInput, match="no such folder"):
        run(export_release, tmp_path / "none", "--out", tmp_path / "a")
