"""check-idea on a file of the user's, from another folder."""

from pathlib import Path

import pytest

from alitok.cli import main

IDEA = """# over: demo/tokenizer-stage1.yaml
# The decoder alone.
model: {init_args: {tokenizer: {init_args: {bottleneck: {class_path: %s}}}}}
"""
CODE = """from alitok.models.seams import Bottleneck, Decoding


class Half(Bottleneck):
    def forward(self, tokens, quantizer, step):
        return [Decoding(latents=tokens.decodable * 0.5)]


class Short(Bottleneck):
    def forward(self, tokens, quantizer, step):
        return [Decoding(latents=tokens.decodable[:, :1])]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "checked_idea.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_what_breaks_is_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "short.yaml").write_text(IDEA % "checked_idea.Short")
    with pytest.raises(SystemExit) as ended:
        main(["check-idea", "short.yaml"])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert "holds   it builds at full size" in captured.out
    assert "broken  it trains three steps" in captured.out
    assert "it must keep the shape" in captured.out
    assert "short.yaml breaks" in captured.err


@pytest.mark.slow
def test_an_idea_of_the_working_folder_holds(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "half.yaml").write_text(IDEA % "checked_idea.Half")
    main(["check-idea", "half.yaml"])
    assert "broken" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("model: {}\n", "must begin with `# over: FILE"), ("# over: nowhere.yaml\n", "is laid over nowhere.yaml")],
)
def test_a_file_that_is_no_idea(own: Path, text: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "odd.yaml").write_text(text)
    with pytest.raises(SystemExit):
        main(["check-idea", "odd.yaml"])
    assert sentence in capsys.readouterr().err
