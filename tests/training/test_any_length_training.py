"""Tokenizers of any length and generators of a prefix: trained, resumed, sampled."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import DEMO, SMALL, token_cache, train

from alitok.artifacts.folder import check_pair, load_generator, load_tokenizer, save_artifact
from alitok.cli import main
from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.config import compose_run
from alitok.ideas.tail_drop import TailDrop
from alitok.sampling.images import sample_images
from alitok.training.launch import run

IDEAS = DEMO.parent / "ideas"
TOKENIZER = [*SMALL, "--define.num_latents", "12", "--model.tokenizer.encoder.num_latents", "${define.num_latents}"]
TOKENIZER += ["--model.phases", "{continuous: {steps: 2}, main: {steps: 4}}", "--model.warmup_steps", "0"]
TOKENIZER += ["--trainer.callbacks.checkpoint.every_n_train_steps", "1"]


def tokenizer_run(idea: str, folder: Path, *more: str) -> dict[str, Any]:
    files = [DEMO / "tokenizer-stage1.yaml", IDEAS / "titok.yaml"]
    files += [] if idea == "titok" else [IDEAS / f"{idea}.yaml"]
    return compose_run(files, ["--define.run", str(folder), *TOKENIZER, *more])


def generator_run(folder: Path, tokens: int, *more: str) -> dict[str, Any]:
    small = ["--define.num_latents", str(tokens), "--define.codebook_size", "32", "--data.global_batch", "8"]
    small += ["--model.generator.width", "32", "--model.generator.depth", "2", "--model.generator.heads", "2"]
    small += ["--model.phases.main.steps", "4", "--trainer.callbacks.samples", "null"]
    files = [DEMO / "generator.yaml", IDEAS / "latents-generator.yaml"]
    return compose_run(files, ["--define.run", str(folder), *small, *more])


@pytest.fixture(scope="module")
def tail_drop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the artifact of a tokenizer trained with tail drop."""
    folder = tmp_path_factory.mktemp("tail-drop")
    run("fit", tokenizer_run("tail-drop", folder))
    return folder


@pytest.mark.parametrize("stop", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("idea", ["tail-drop", "nested-dropout"])
def test_resumed_equals_uninterrupted(idea: str, stop: int, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run("fit", tokenizer_run(idea, whole))
    run("fit", tokenizer_run(idea, parts, "--trainer.max_steps", str(stop)))
    run("fit", tokenizer_run(idea, parts))
    first, second = (load_file(folder / "stage1" / "artifact" / "model.safetensors") for folder in (whole, parts))
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


def test_micro_batches_keep_as_many_tokens_as_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    original = TailDrop.forward

    def noted(self: TailDrop, *arguments: Any) -> Any:
        cut = original(self, *arguments)
        lengths.append(cut[0].latents.shape[1])
        return cut

    monkeypatch.setattr(TailDrop, "forward", noted)
    train(tokenizer_run("tail-drop", tmp_path), 3)
    whole = [*lengths]
    lengths.clear()
    train(tokenizer_run("tail-drop", tmp_path, "--data.micro_batch", "4"), 3)
    assert len(whole) == 3
    assert lengths == [length for length in whole for _ in range(2)]


def test_nested_dropout_trains_its_mask_token(tmp_path: Path) -> None:
    config = tokenizer_run("nested-dropout", tmp_path)
    module = train(config, 2)
    torch.manual_seed(0)
    start = build(config["model"]["init_args"]["tokenizer"]).bottleneck.mask_token
    assert not torch.equal(module.tokenizer.bottleneck.mask_token, start)


def test_a_generator_of_a_prefix_trains_and_draws_what_the_tokenizer_decodes(tail_drop: Path, tmp_path: Path) -> None:
    token_cache(tmp_path)  # 20 tokens an image, of which the first 6 are read
    run("fit", generator_run(tmp_path, 6))
    generator = load_generator(tmp_path / "generator" / "artifact")
    tokenizer = load_tokenizer(tail_drop / "stage1" / "artifact")
    assert generator.num_tokens == 6 < tokenizer.num_tokens
    generator.card["tokenizer"] = None
    check_pair(generator, tokenizer)
    ((_, ids, images),) = sample_images(generator, tokenizer, [0, 1], Draw(seed=1))
    ((_, fewer, short),) = sample_images(generator, tokenizer, [0, 1], Draw(seed=1, keep=3))
    assert torch.equal(fewer, ids[:, :3])
    assert torch.equal(images, tokenizer.decode(ids))
    assert torch.equal(short, tokenizer.decode(ids[:, :3]))
    cache = ["--define.cache", str(tmp_path / "tokens")]
    with pytest.raises(BadInput, match="expects 5"):
        run("fit", generator_run(tmp_path / "other", 5, "--data.keep", "6", *cache))
    with pytest.raises(BadInput, match="has 20 tokens an image; it cannot keep 21"):
        run("fit", generator_run(tmp_path / "other", 21, *cache))


def test_the_whole_way_by_the_command_line(tail_drop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(tail_drop / "stage1" / "artifact")
    block = generator_run(tmp_path, 8)["model"]["init_args"]["generator"]
    card = {"kind": "generator", "tokenizer": tokenizer.card["digest"]}
    save_artifact(tmp_path / "generator", block, build(block), card)
    words = ["sample", "--generator", str(tmp_path / "generator")]
    words += ["--tokenizer", str(tail_drop / "stage1" / "artifact"), "--count", "3"]
    main([*words, "--keep", "4", "--out", str(tmp_path / "four.npz")])
    assert '"keep": 4' in (tmp_path / "four.json").read_text()
    capsys.readouterr()
    for keep in ("0", "9", "13"):
        with pytest.raises(SystemExit) as ended:
            main([*words, "--keep", keep, "--out", str(tmp_path / "bad.npz")])
        assert ended.value.code == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("alitok: ")
        assert "\n" not in error
        assert keep in error
