"""The commands of the pages under docs/ run, in order, in a scratch folder; and so do the examples of `VERB --help`.

Data and weights are made on the spot; `SMALLER` and `BROUGHT` are all that is added to a command to make it quick.
"""

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from stand_in import write, write_wide

from alitok.artifacts import published
from alitok.artifacts.presets import PRESETS
from alitok.artifacts.release import generator_to_release, tokenizer_to_release
from alitok.cli import VERBS, Parser, run
from alitok.common.errors import BadInput
from alitok.common.files import experiments_folder
from alitok.config import compose_run
from alitok.models.decoder import Decoder
from alitok.models.encoder import Encoder
from alitok.models.generator import Generator
from alitok.models.quantizer import ClusteredQuantizer
from alitok.models.tokenizer import Tokenizer
from alitok.studies.demo import again_command

ROOT = Path(__file__).parents[1]
# the first two go through the whole line: minutes
LONG = [pytest.param(name, marks=pytest.mark.slow) for name in ("laptop", "own-pictures")]
PAGES = ["imagenet", "training", "evaluation", "configuration"]
# Fences in another language are not for the shell.
SHELL, OTHER = ("", "bash", "sh"), ("text", "yaml", "json", "python")

WIDTHS = [f"--model.tokenizer.{part}.{name} {value}" for part in ("encoder", "decoder") for name, value in
          (("width", 32), ("depth", 1), ("heads", 2))]  # fmt: skip
GENERATOR = "--model.generator.width 32 --model.generator.heads 2"
QUICK = "--data.global_batch 8 --trainer.val_check_interval 10 --trainer.callbacks.checkpoint.every_n_train_steps 10"
STEPS = {
    "tokenizer-stage1": "--model.phases.continuous.steps 5 --model.phases.main.steps 5 --data.val_count 16",
    "tokenizer-stage2": "--model.phases.main.steps 10 --data.val_count 16",
    "generator": "--model.phases.main.steps 10 --trainer.limit_val_batches 1",
}
STEPS = {
    name: f"{' '.join(WIDTHS) if 'tokenizer' in name else GENERATOR} {QUICK} {words}" for name, words in STEPS.items()
}
# (all of these are in the line, words that are added to it)
SMALLER: list[tuple[tuple[str, ...], str]] = [
    *((("fit", f"experiments/demo/{name}.yaml"), words) for name, words in STEPS.items()),
    *((("fit", f"experiments/cifar10/{name}.yaml"), words) for name, words in STEPS.items()),
    (("fit", "experiments/cifar10/generator.yaml"), "--model.generator.depth 1"),
    (("describe", "tokenizer"), "--model.tokenizer.encoder.depth 1 --model.tokenizer.decoder.depth 1"),
    (("describe", "generator"), "--model.generator.depth 1"),
    (("sample", "--count"), "--count 8"),
    (("reproduce",), "--count 4"),
    (("train-classifier",), "--count 40 --steps 4 --width 8"),
    (("compare",), "--images 2"),
    (("tune-guidance",), "--count 20 --scales 2 --powers 1 --refine 0"),
]  # fmt: skip
# Files that the page tells the reader to have in their usual place; unless the line names another.
BROUGHT = {
    verb: {"--extractor": "brought/inception-2015-12-05.pt"} for verb in ("evaluate", "reproduce", "tune-guidance")
}
# page -> (sentence that the page quotes, command that must be answered with it), after the page's own commands.
TOKENIZER = "--tokenizer runs/{}/stage2/artifact"
REFUSALS = {
    "laptop": [
        (
            "No class 'hart': there are circle, square, triangle, star, heart, cross, ring, crescent, arrow, flower;"
            " did you mean 'heart'?",
            "sample --generator runs/demo/generator/artifact --tokenizer runs/demo/stage2/artifact --classes hart"
            " --out x.png",
        ),
        (
            "Token cache runs/demo-2/tokens does not exist; make it with",
            "fit -c experiments/demo/generator.yaml --define.run runs/demo-2 --trainer.default_root_dir runs/new",
        ),
    ],
    "own-pictures": [
        (
            "Data folder data/pets has no class folders; put one folder of images per class there, or one folder"
            " with all images if they have no classes.",
            "tokenize --tokenizer runs/pets/stage2/artifact --data data/flat --out runs/none",
        ),
        (
            "Cannot read the image data/pets/2/broken.jpg:",
            "reconstruct --tokenizer runs/pets/stage2/artifact data/pets --out runs/none",
        ),
        (
            "image_size 64 does not divide into patches of 7",
            "describe -c experiments/cifar10/tokenizer-stage1.yaml --define.image_size 64 --define.patch_size 7",
        ),
        (
            "The cache has 5 classes, the generator only 3: give it as many (--define.num_classes 5).",
            "fit -c experiments/cifar10/generator.yaml --define.run runs/pets --define.num_classes 3"
            " --trainer.default_root_dir runs/new",
        ),
        (
            "The cache has 72 tokens an image, the generator expects 272:",
            "fit -c experiments/cifar10/generator.yaml --define.run runs/pets --define.rows 16"
            " --trainer.default_root_dir runs/new",
        ),
        (
            "No class 'cafe creme': there are 1, 10, 2, café crème, red apple; did you mean 'café crème'?",
            "sample --generator runs/pets/generator/artifact --tokenizer runs/pets/stage2/artifact"
            " --classes 'cafe creme' --out x.png",
        ),
    ],
    "imagenet": [
        ("There is no file AliTok.pth", "import-release elsewhere/AliTok.pth"),
        (
            "No class 'golden retreiver': there are 1000, 0..999; did you mean 'golden retriever'?",
            "sample --generator runs/release/177M --tokenizer runs/release/tokenizer --classes 'golden retreiver'"
            " --out x.png",
        ),
        (
            "runs/imagenet256/stage1/artifact is not an artifact",
            "fit -c experiments/demo/tokenizer-stage2.yaml --define.run runs/imagenet256",
        ),
    ],
}


# page -> what its commands print
SAID = {"laptop": "3 of 6: stage2", "own-pictures": "runs/pets/generator/artifact: the generator after 10 steps"}
# page -> what it says its commands leave
LEFT = {
    "laptop": ["runs/demo/report.html", "runs/demo/stage1/curves.png", "stars.png", "compare.html"],
    "own-pictures": [
        *(
            f"runs/pets/{part}/{name}"
            for part in ("stage1", "stage2", "generator")
            for name in ("artifact", "curves.png", "pictures", "logs")
        ),
        "runs/pets/samples.png",
        "runs/pets/fid.json",
        "runs/pets/own-fid.json",
    ],
    "imagenet": ["grid.png", "runs/release/copies/grid.png", "runs/reproduce/177M/reproduce.json"],
}


def commands(page: str) -> list[str]:
    """The lines of a page's shell blocks, those that go on behind a backslash put together."""
    found = []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        assert language in SHELL + OTHER, f"a block in {language!r}"
        if language in SHELL:
            found += [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return found


def understood(verb: str, words: list[str]) -> argparse.Namespace:
    """Parses the words after a verb, and composes the configuration that they name."""
    assert verb in VERBS, f"there is no verb {verb}"
    module = importlib.import_module(f"alitok.commands.{verb.replace('-', '_')}")
    parser = Parser(prog=f"alitok {verb}")
    module.add_arguments(parser)
    if not getattr(module, "TAKES_OVERRIDES", False):
        return parser.parse_args(words)
    args, overrides = parser.parse_known_args(words)
    if getattr(args, "config", None) is not None:  # `describe --data` and `check-idea` have none
        compose_run(args.config, overrides)
    return args


def smaller(words: list[str]) -> list[str]:
    """The words after `alitok`, with what makes them quick."""
    line = " ".join(words)
    more = [extra for keys, extra in SMALLER if words[0] == keys[0] and all(key in line for key in keys[1:])]
    brought = [word for pair in BROUGHT.get(words[0], {}).items() if pair[0] not in words for word in pair]
    if "--protocol" in words:  # clean-fid's network has a width that the small one has not
        brought = ["--extractor", "brought/wide/inception-2015-12-05.pt"]
    return [*words, *shlex.split(" ".join(more)), *brought]


def make(words: list[str]) -> None:
    """Targets and variables of a make line exist; `make demo` leaves what a demo leaves."""
    text = (ROOT / "Makefile").read_text()
    for word in words:
        name, equals, _ = word.partition("=")
        pattern = rf"^{re.escape(name)} \?=" if equals else rf"^{re.escape(name)}:.*##"
        assert re.search(pattern, text, re.MULTILINE), f"make knows no {name}"
    result = subprocess.run(["make", "-n", "-C", str(ROOT), *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    if words == ["demo"]:
        small_demo()


def small_demo() -> None:
    configs = Path("brought/demo")
    configs.mkdir(parents=True)
    for name, words in STEPS.items():
        config = compose_run([ROOT / "experiments" / "demo" / f"{name}.yaml"], shlex.split(words))
        (configs / f"{name}.yaml").write_text(yaml.safe_dump(config))
    words = "demo --images 20 --samples 20 --classifier-steps 5 --precision 32-true --config"
    run([*words.split(), str(configs)])


def cluster(words: list[str]) -> None:
    """A job's script is there, and what it would run is understood; a wrapped line is run."""
    while words and words[0].startswith("--"):
        name, value = words[0].split("=") if "=" in words[0] else words[:2]
        words = words[1:] if "=" in words[0] else words[2:]
        assert name in ("--dependency", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--wrap")
        if name == "--wrap":
            execute(value)
            assert not words
            return
    script, base, *more = words
    text = (ROOT / script).read_text()
    laid = re.search(r'alitok fit -c "\$base" -c (\S+)', text)
    assert laid is not None
    understood("fit", ["-c", base, "-c", laid[1], *more])


def execute(line: str) -> None:
    """Runs one line of a page, or checks it where a cluster would be needed; fails for what it does not know."""
    program, *words = shlex.split(line, comments=True)
    if program == "torchrun" and "-m" in words:
        launch, words = words[: words.index("-m")], words[words.index("-m") + 1 :]
        program = words.pop(0)
        if "--nnodes" in launch:
            assert program == "alitok"
            understood(words[0], words[1:])
            return
    if program == "alitok":
        run(smaller(words))
    elif program == "python":
        subprocess.run([sys.executable, *words], check=True, timeout=300)
    elif program == "make":
        make(words)
    elif program == "rm":
        for word in words:
            Path(word).unlink()
    elif program == "sbatch":
        cluster(words)
    else:
        raise AssertionError(f"tests/test_docs.py does not know how to run: {line}")


def noise(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def pets(folder: Path) -> None:
    """Five classes of uneven counts, pictures of mixed sizes and modes, and a broken file."""
    modes = ("RGB", "L", "RGBA", "P", "CMYK", "I;16")
    for number, (name, count) in enumerate({"1": 9, "10": 4, "2": 6, "café crème": 12, "red apple": 10}.items()):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            picture = Image.fromarray(noise(20 + 7 * index, 30 + 11 * number, 3, seed=index))
            mode = modes[index % len(modes)]
            if mode == "I;16":
                picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
            else:
                picture = picture.convert(mode)
            picture.save(folder / name / f"{index}.{'jpg' if mode == 'CMYK' else 'png'}")
    broken()


def broken() -> None:
    Path("data/pets/2/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")


def release(folder: Path) -> None:
    """`AliTok.pth` and `alitok_b.bin` in the release's form, small."""
    torch.manual_seed(0)
    decoder = Decoder(256, 16, 17, 8, 64, 1, 1, causal=False, buffer_tokens=4)
    tokenizer = Tokenizer(Encoder(256, 16, 273, 8, 64, 1, 1), ClusteredQuantizer(64, 8, clustering=False), decoder)
    generator = Generator(64, 1000, 17, (16, 16), 64, 1, 2)
    torch.save({k: v.clone() for k, v in tokenizer_to_release(tokenizer.state_dict()).items()}, folder / "AliTok.pth")
    torch.save({k: v.clone() for k, v in generator_to_release(generator.state_dict()).items()}, folder / "alitok_b.bin")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the pages tell the reader to have, as the present folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("experiments", "docs"):
        Path(name).symlink_to(ROOT / name)
    pets(Path("data/pets"))
    imagenet = [f"data/imagenet/{split}/n0144{number}" for split in ("train", "val") for number in range(2)]
    for path in ("data/flat", "pictures", *imagenet):
        Path(path).mkdir(parents=True)
        for index in range(2):
            Image.fromarray(noise(280, 300, 3, seed=index)).save(Path(path) / f"{index}.png")
    for folder in (".", "data"):
        np.savez(f"{folder}/VIRTUAL_imagenet256_labeled.npz", arr_0=noise(8, 256, 256, 3))
    release(tmp_path)
    # what the jobs of a cluster leave
    published.import_release("AliTok.pth", "runs/imagenet256/stage2/artifact")
    published.import_release("alitok_b.bin", "runs/imagenet256/generator-662M/artifact")
    Path("brought").mkdir()
    write(Path("brought/inception-2015-12-05.pt"))
    Path("brought/wide").mkdir()
    write_wide(Path("brought/wide/inception-2015-12-05.pt"))
    # the small generator is taken for the published one of 177 M
    monkeypatch.setitem(PRESETS, "177M", replace(PRESETS["177M"], width=64, depth=1))
    return tmp_path


@pytest.mark.parametrize("name", [*LONG, *PAGES])
def test_every_command_of_a_page_runs(name: str, scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / f"{name}.md").read_text()
    lines = commands(page)
    assert lines
    for line in lines:
        try:
            execute(line)
        except BadInput as error:
            raise AssertionError(f"{line}\nwas refused: {error}") from error
    assert SAID.get(name, "") in capsys.readouterr().out
    for left in LEFT.get(name, ()):
        assert Path(left).exists(), f"the page says that there is {left}"
    broken()
    for sentence, line in REFUSALS.get(name, []):
        assert sentence in page
        with pytest.raises(BadInput) as refusal:
            run(shlex.split(line))
        said = str(refusal.value).replace("data/flat", "data/pets").replace("elsewhere/", "")
        assert sentence in said


@pytest.mark.parametrize(
    "line",
    [
        "curl -O https://example.org/file",
        "make nothing",
        "make demo NOTHING=1",
        "alitok nothing",
        "alitok describe -c experiments/nothing.yaml",
        "torchrun --nnodes 2 -m alitok tokenize --nothing",
        "sbatch experiments/strategies/nothing.sh experiments/demo/generator.yaml",
        "sbatch --nothing 2 experiments/strategies/slurm.sh experiments/demo/generator.yaml",
        "sbatch --nodes 1 --wrap 'make nothing'",
        "sbatch experiments/strategies/slurm.sh experiments/demo/nothing.yaml",
        "python nothing.py",
    ],
)
def test_a_line_that_cannot_run_fails(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, BadInput, OSError, subprocess.CalledProcessError)):
        execute(line)


def test_the_demo_report_says_what_the_page_says() -> None:
    command = again_command(Path("runs/demo"), experiments_folder() / "demo")
    assert command in commands((ROOT / "docs" / "laptop.md").read_text())


def test_links_between_pages() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_named_in_pages_exist() -> None:
    roots = [ROOT, ROOT / "src" / "alitok", ROOT / "experiments"]
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|yaml|sh|md))`", page.read_text()):
            assert "NAME" in name or any((root / name).exists() for root in roots), f"{page.name}: {name}"


@pytest.mark.parametrize("verb", VERBS)
def test_help_says_one_sentence_and_its_examples_are_understood(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    module = importlib.import_module(f"alitok.commands.{verb.replace('-', '_')}")
    assert module.__doc__
    assert "\n" not in module.__doc__.split("\n\n")[0].strip()  # the sentence is a line
    parser = Parser(prog=f"alitok {verb}")
    module.add_arguments(parser)
    lines = (parser.epilog or "").replace("\\\n", " ").splitlines()
    examples = [re.split(r"alitok ", line, maxsplit=1)[1] for line in lines if "alitok " in line and "..." not in line]
    assert examples
    for example in examples:
        said, *words = shlex.split(re.split(r" {3,}(?!-)", example)[0])
        assert said == verb
        understood(verb, words)
