"""The one door: what is imported, exit statuses, and one clear line for whatever is wrong."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from alitok.cli import VERBS, main, run
from alitok.common.errors import BadInput
from alitok.config import compose_run

DEMO = Path(__file__).parents[1] / "experiments" / "demo"
PERCEPTUAL = """
model:
  init_args:
    losses:
      perceptual: {class_path: alitok.losses.perceptual.ConvNeXtLogits}
"""

Refusal = Callable[..., str]


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Runs the words after `alitok`, which must be refused; returns the one line on stderr."""

    def run(*words: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        output = capsys.readouterr()
        assert stop.value.code == 2
        assert output.err.startswith("alitok: ")
        assert output.err.count("\n") == 1
        return output.err

    return run


def shell(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of its own process."""
    return subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code = "import sys; from alitok.cli import main; main(['--help']); print('LOADED', *sys.modules)"
    text, _, loaded = shell(sys.executable, "-c", code).stdout.partition("LOADED")
    assert all(f"  {verb} " in text for verb in VERBS)
    assert not {"torch", "lightning", "numpy", "omegaconf", "rich"} & set(loaded.split())


def test_module_and_script_are_the_same() -> None:
    script, module = str(Path(sys.executable).with_name("alitok")), (sys.executable, "-m", "alitok")
    assert shell(script, "--help").stdout == shell(*module, "--help").stdout
    wrong = [shell(script, "fti"), shell(*module, "fti")]
    assert [result.returncode for result in wrong] == [2, 2]
    assert wrong[0].stderr == wrong[1].stderr
    assert wrong[0].stderr.count("\n") == 1
    assert "'fti'" in wrong[0].stderr
    assert "'fit'" in wrong[0].stderr
    debug = shell(*module, "fti", ALITOK_DEBUG="1")
    assert debug.returncode != 0
    assert "Traceback" in debug.stderr


def test_debug_raises_in_place_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALITOK_DEBUG", "1")
    with pytest.raises(BadInput, match="unknown verb"):
        main(["tokenise"])


@pytest.mark.parametrize("words", [[], ["help"], ["-h"]])
def test_help_without_a_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(words)
    assert "usage: alitok VERB" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: alitok {verb}")
    assert "options:" in text


def test_wrong_options(refusal: Refusal) -> None:
    assert "--tokenzier" in refusal("tokenize", "--tokenizer", "a", "--data", "b", "--out", "c", "--tokenzier", "d")
    assert "--out" in refusal("tokenize", "--tokenizer", "a", "--data", "shapes")
    assert "--batch" in refusal("sample", "--generator", "a", "--tokenizer", "b", "--out", "c", "--batch", "many")
    assert "--config" in refusal("fit")


def test_missing_configuration(refusal: Refusal, tmp_path: Path) -> None:
    assert "none.yaml" in refusal("fit", "-c", tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "list.yaml" in refusal("fit", "-c", tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("trainer: {max_steps: 3}\n")
    assert "has no 'model'" in refusal("fit", "-c", tmp_path / "empty.yaml")


@pytest.mark.parametrize(
    ("override", "key", "near"),
    [
        ("--modle.seed", "modle", "model"),
        ("--trainer.devizes", "trainer.devizes", "devices"),
        ("--model.tokenizer.encoder.widht", "model.init_args.tokenizer.init_args.encoder.init_args.widht", "width"),
        ("--data.gloabl_batch", "data.init_args.gloabl_batch", "global_batch"),
        ("--model.phases.main.step", "phases.main has no key 'step'", "steps"),
    ],
)
def test_mistyped_keys(refusal: Refusal, tmp_path: Path, override: str, key: str, near: str) -> None:
    line = refusal("fit", "-c", DEMO / "tokenizer-stage1.yaml", "--define.run", tmp_path / "run", override, 3)
    assert key in line
    assert f"did you mean {near!r}?" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "value", "words"),
    [
        ("--data.global_batch", "many", "data.init_args.global_batch must be a whole number, not 'many'"),
        ("--model.phases.main.steps", "soon", "phases.main.steps must be a whole number, not 'soon'"),
        ("--model.tokenizer.encoder.heads", "3", "width 128 does not divide into 3 heads"),
        ("--define.num_prefix", "9", "the encoder gives num_latents 72, the decoder takes prefix and patches, 73"),
        ("--data.image_size", "32", "takes images of 64 pixels, but data.image_size is 32"),
        ("--define.sorce", "pictures", "did you mean 'source'?"),
        ("--trainer.accelerator", "abacus", "invalid accelerator name"),
        ("--trainer.callbacks.checkpoint.keep", "0", "keep must be at least 1"),
        ("--trainer.val_check_interval", "0", "trainer.val_check_interval must be at least 1 step, not 0"),
        ("--data.num_workers", "-1", "num_workers must be at least 0, not -1"),
    ],
)
def test_values_that_no_run_can_have(refusal: Refusal, tmp_path: Path, override: str, value: str, words: str) -> None:
    few = ["--data.count", "64", "--data.val_count", "16", "--define.run", tmp_path]
    assert words in refusal("fit", "-c", DEMO / "tokenizer-stage1.yaml", *few, override, value)
    assert not list(tmp_path.rglob("artifact"))


def test_missing_loss_weights_stop_before_lightning_is_imported(tmp_path: Path) -> None:
    (tmp_path / "perceptual.yaml").write_text(PERCEPTUAL)
    words = ["fit", "-c", str(DEMO / "tokenizer-stage1.yaml"), "-c", str(tmp_path / "perceptual.yaml")]
    words += ["--define.run", str(tmp_path / "run")]
    code = f"""
import sys
from alitok.cli import main
try:
    main({words!r})
finally:
    print(*sys.modules)
"""
    result = shell(sys.executable, "-c", code, TORCH_HOME=str(tmp_path / "cache"))
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "Missing weight file convnext_small-0c510722.pth" in result.stderr
    assert str(tmp_path / "cache") in result.stderr
    assert not {"lightning", "torchvision"} & set(result.stdout.split())
    assert [path.name for path in tmp_path.iterdir()] == ["perceptual.yaml"]


def test_a_term_that_no_phase_uses_needs_no_weights(
    refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "perceptual.yaml").write_text(PERCEPTUAL)
    off = []
    for phase in ("continuous", "main"):
        off += [f"--model.phases.{phase}.weights.perceptual", "0"]
    files = ["-c", DEMO / "tokenizer-stage1.yaml", "-c", tmp_path / "perceptual.yaml"]
    assert "Missing weight file" in refusal("validate", *files, "--define.run", tmp_path / "run")
    assert "No checkpoint" in refusal("validate", *files, "--define.run", tmp_path / "run", *off)


def test_missing_data_ends_a_fit_without_results(refusal: Refusal, tmp_path: Path) -> None:
    run = ["--define.run", tmp_path / "run"]
    line = refusal("fit", "-c", DEMO / "tokenizer-stage1.yaml", *run, "--define.source", tmp_path / "pictures")
    assert f"{tmp_path / 'pictures'} does not exist" in line
    line = refusal("fit", "-c", DEMO / "generator.yaml", *run)
    assert f"{tmp_path / 'run' / 'tokens'} does not exist" in line
    assert not [path for path in tmp_path.rglob("*") if path.name in ("artifact", "checkpoints", "curves.png")]


def test_missing_artifacts_and_data(refusal: Refusal, tmp_path: Path, artifacts: Path) -> None:
    none, out = tmp_path / "none", tmp_path / "out"
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"")
    tokenizer, generator = ["--tokenizer", artifacts / "tokenizer"], ["--generator", artifacts / "generator"]
    words = f"{none} is not an artifact"
    assert words in refusal("tokenize", "--tokenizer", none, "--data", "shapes", "--out", out)
    assert words in refusal("sample", "--generator", none, *tokenizer, "--out", out)
    assert words in refusal("sample", *generator, "--tokenizer", none, "--out", out)
    assert "is a tokenizer, but a generator" in refusal(
        "sample", "--generator", artifacts / "tokenizer", *tokenizer, "--out", out
    )
    assert "picture.png" in refusal("reconstruct", *tokenizer, picture, "--out", out)
    assert f"Data folder {none} does not exist" in refusal("tokenize", *tokenizer, "--data", none, "--out", out)
    assert "--device" in refusal("tokenize", *tokenizer, "--data", "shapes", "--out", out, "--device", "tpu9")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_reconstruct_without_its_artifact(refusal: Refusal, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 40)).save(tmp_path / "picture.png")
    line = refusal("reconstruct", "--tokenizer", tmp_path / "none", tmp_path / "picture.png", "--out", tmp_path / "out")
    assert f"{tmp_path / 'none'} is not an artifact" in line
    assert not (tmp_path / "out").exists()


def test_a_demo_that_cannot_be_written_does_not_begin(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert f"Cannot write {tmp_path / 'file'}" in refusal("demo", "--out", tmp_path / "file")


@pytest.mark.parametrize("program", [["alitok"], ["python", "-m", "alitok"]], ids=" ".join)
def test_a_class_of_the_working_folder_can_be_named(program: list[str], tmp_path: Path) -> None:
    (tmp_path / "my_idea.py").write_text("class Thing: pass\n")
    found = [str(Path(sys.executable).with_name(program[0])), *program[1:]]
    words = ["describe", "-c", "experiments/cifar10/generator.yaml", "--model.generator.class_path", "my_idea.Thing"]
    ours = {**os.environ, "PYTHONPATH": str(DEMO.parents[1] / "src")}
    result = subprocess.run([*found, *words], capture_output=True, text=True, env=ours, cwd=tmp_path, timeout=120)
    assert (result.returncode, result.stderr) == (2, "alitok: my_idea.Thing is no Module; name another class.\n")


@pytest.mark.parametrize("verb", ["fit", "validate", "test", "describe"])
def test_print_config_prints_what_the_files_make(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variant = "experiments/cifar10/generator.yaml"
    run([verb, "-c", variant, "--data.global_batch", "8", "--print_config"])
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert compose_run([printed]) == compose_run([variant], ["--data.global_batch", "8"])
    with pytest.raises(BadInput, match="global_bach"):
        run([verb, "-c", variant, "--data.global_bach", "8", "--print-config"])
