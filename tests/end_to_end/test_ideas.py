"""Every idea of experiments/ideas/ and the guide's worked example: built at full size, trained, resumed, handed on.

An idea's first line, `# over: FILE [FILE ...]`, names what it is laid over: one complete configuration or several to
choose from, and overlays that go between (other ideas). Those under demo/ stand for the recipe of imagenet256/ too.
"""

import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alitok.artifacts.folder import load_artifact
from alitok.common.build import import_class
from alitok.config import compose_run, load_yaml
from alitok.data.token_cache import TokenCache
from alitok.profiling.cost import Layout, cost
from alitok.sampling.generate import generate
from alitok.studies import small
from alitok.training.checkpoint import read_checkpoint
from alitok.training.launch import run

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
IDEAS = sorted((EXPERIMENTS / "ideas").glob("*.yaml"))
GUIDE = EXPERIMENTS.parent / "docs" / "adding-an-idea.md"
STEPS, STOP = small.STEPS, 1


def head(idea: Path) -> list[str]:
    """The first two lines of an idea without their marks."""
    return [line.removeprefix("#").strip() for line in idea.read_text("utf-8").splitlines()[:2]]


@cache
def stacks(idea: Path) -> list[small.Stack]:
    """The stacks of an idea; those over demo/ stand for the recipe of imagenet256/ too."""
    found = small.stacks(idea)
    full = [(Path(str(base).replace("/demo/", "/imagenet256/")), *rest) for base, *rest in found]
    return list(dict.fromkeys([*found, *(files for files in full if files[0].is_file())]))


def small_stack(idea: Path) -> small.Stack:
    """The stack whose images are smallest."""
    return min(stacks(idea), key=lambda files: load_yaml(files[0]).get("define", {}).get("image_size", 64))


def reduced(files: small.Stack, folder: Path) -> dict[str, Any]:
    """The small configuration in two micro-batches, with no callback but those that keep."""
    config = small.small(compose_run(files, ["--define.run", str(folder)]))
    data, trainer = config["data"]["init_args"], config["trainer"]
    data["micro_batch"] = small.BATCH // 2
    trainer |= {"logger": False, "limit_val_batches": 0, "log_every_n_steps": 1, "precision": "32-true"}
    kept = {name: trainer["callbacks"][name] for name in ("health", "checkpoint", "artifact")}
    kept["checkpoint"]["init_args"]["every_n_train_steps"] = 1
    trainer["callbacks"] = kept
    return config


def fit(files: small.Stack, folder: Path, *stops: int) -> Path:
    """Trains, stopped after so many steps and taken up again; the run's folder."""
    for number, stop in enumerate((*stops, STEPS)):
        config = reduced(files, folder)
        if number == 0:
            small.prepare(config)
        config["trainer"]["max_steps"] = stop
        root = Path(config["trainer"]["default_root_dir"])
        run("fit", config)
    return root


def check_said(idea: Path) -> None:
    over, what = head(idea)
    assert re.fullmatch(r"over: \S.*", over), f"{idea.name} does not begin with `# over: FILE [FILE ...]`"
    assert len(what) > 20, f"{idea.name} does not say in its second line what it is and where it comes from"
    assert stacks(idea), f"none of the files {idea.name} is laid over is a whole configuration"


def check_full_size(idea: Path) -> None:
    for files in stacks(idea):
        config = compose_run(files)
        with torch.device("meta"):
            module = import_class(config["model"]["class_path"])(**config["model"]["init_args"])
        assert module.schedule.total_steps > 0
        assert all(parameter.is_meta for parameter in module.model.parameters())


def check_run(idea: Path, folder: Path) -> None:
    """Trains, resumes to the same bits, exports an artifact that loads, and its ids go there and back."""
    files = small_stack(idea)
    whole, parts = fit(files, folder / "whole"), fit(files, folder / "parts", STOP)
    for name in sorted(path.name for path in (whole / "artifact").glob("*.safetensors")):
        first, second = (load_file(root / "artifact" / name) for root in (whole, parts))
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[key]) for key, tensor in first.items()), name
    before = read_checkpoint(whole / "checkpoints" / f"step={STEPS - 1}.ckpt")["state_dict"]
    model: Any = load_artifact(whole / "artifact")
    kind = model.card["kind"]
    # not buffers and codes, which a clustering update moves without a gradient
    after = {f"{kind}.{name}": tensor for name, tensor in model.named_parameters() if "codebook" not in name}
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items()), "nothing was trained"
    (check_tokenizer if kind == "tokenizer" else check_generator)(model, folder)


@torch.no_grad()
def check_tokenizer(tokenizer: Any, folder: Path) -> None:
    size = tokenizer.image_size
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    found = tokenizer.quantizer(tokenizer.encode_latents(images))
    ids = tokenizer.encode(images)
    assert torch.equal(ids, found.ids)
    assert ids.shape[:2] == (4, tokenizer.num_tokens)
    assert 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.codebook_size
    torch.testing.assert_close(tokenizer.quantizer.lookup(ids), found.quantized, rtol=1e-4, atol=1e-5)
    small.write_ids(folder / "ids", ids.numpy()[:, None], tokenizer)
    read = TokenCache(folder / "ids").gather(torch.arange(4), torch.zeros(4, dtype=torch.int64))
    assert torch.equal(read, ids)
    pictures = tokenizer.decode(read)
    assert pictures.shape == images.shape
    assert 0 <= float(pictures.min()) <= float(pictures.max()) <= 1


@torch.no_grad()
def check_generator(generator: Any, folder: Path) -> None:
    labels = torch.tensor([0, 1, 2])
    ids = generate(generator, labels)
    assert ids.shape[:2] == (3, generator.num_tokens)
    assert 0 <= int(ids.min()) <= int(ids.max()) < generator.codebook_size
    assert torch.equal(generate(generator, labels[1:], indices=[1, 2]), ids[1:])
    if generator.output.has_logits:
        assert generator(ids, labels).shape == (*ids.shape, generator.codebook_size)
    small.write_ids(folder / "ids", ids.numpy()[:, None], generator)
    assert torch.equal(TokenCache(folder / "ids").gather(torch.arange(3), torch.zeros(3, dtype=torch.int64)), ids)


@pytest.mark.parametrize("idea", IDEAS, ids=lambda path: path.stem)
def test_it_says_what_it_is_and_builds_at_full_size(idea: Path) -> None:
    check_said(idea)
    check_full_size(idea)


@pytest.mark.parametrize("idea", IDEAS, ids=lambda path: path.stem)
def test_what_it_costs_is_counted(idea: Path, tmp_path: Path) -> None:
    """`describe`, at a small size; a network that a term compares with is counted beside the model."""
    config = reduced(small_stack(idea), tmp_path)
    found = cost(config, Layout("cpu"))
    assert found.peak.memory_bytes > 0
    assert all(sum(turn.flops.values()) > 0 for turn in found.turns)
    assert ("reference" in found.beside) == (config["model"]["init_args"].get("reference") is not None)


@pytest.mark.parametrize("idea", IDEAS, ids=lambda path: path.stem)
def test_it_trains_resumes_exactly_and_hands_on_an_artifact(idea: Path, tmp_path: Path) -> None:
    check_run(idea, tmp_path)


def files_of_the_guide() -> dict[str, str]:
    """The files that the guide has its reader write, by name."""
    text = GUIDE.read_text("utf-8")
    return dict(re.findall(r"^`(\S+)`:\n\n```(?:python|yaml)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def test_the_worked_example_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class in the folder where the command is started, from its file to an artifact that loads."""
    files = files_of_the_guide()
    assert sum(content.count("\n") for content in files.values()) <= 45
    for name, content in files.items():
        (tmp_path / name).write_text(content, "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    idea = tmp_path / "latent-noise.yaml"
    check_said(idea)
    check_full_size(idea)
    check_run(idea, tmp_path)


def test_the_loss_of_the_guide() -> None:
    (source,) = re.findall(
        r"^```python\n(\"\"\"Differences.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    namespace: dict[str, Any] = {}
    exec(compile(source, "slope.py", "exec"), namespace)
    image = torch.zeros(1, 3, 4, 4)
    image[..., 2:] = 1
    value = namespace["Slope"]()({"image": torch.zeros(1, 3, 4, 4)}, {"image": image})
    assert value.item() == pytest.approx(1 / 3)  # one of three differences in each row


def test_the_code_of_the_guide_passes_the_lint(tmp_path: Path) -> None:
    files = {name: code for name, code in files_of_the_guide().items() if name.endswith(".py")}
    text = GUIDE.read_text("utf-8")
    (files["slope.py"],) = re.findall(r'^```python\n("""Diff.*?)^```', text, re.MULTILINE | re.DOTALL)
    for name, code in files.items():
        (tmp_path / name).write_text(code, "utf-8")
    shutil.copy(GUIDE.parents[1] / "pyproject.toml", tmp_path)
    for words in (["check", "."], ["format", "--check", "."]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
