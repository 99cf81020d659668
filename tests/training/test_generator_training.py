"""Training of the generator on a token cache."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny, train

from alitok.artifacts.folder import save_artifact
from alitok.common.build import build
from alitok.common.compiler import has_compiler
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.data.token_shards import write_token_cache
from alitok.losses.terms import Batch, LossTerm, Outputs
from alitok.models.seams import Quantizer
from alitok.training import generator as training
from alitok.training.generator import GeneratorTraining


def cache(folder: Path, tokens: int = 20, codes: int = 32, classes: int = 10) -> Path:
    rng = np.random.default_rng(0)
    rows = [(i % classes, np.tile(rng.integers(0, codes, (1, tokens)), (2, 1))) for i in range(40)]
    names = [f"class {i}" for i in range(classes)]
    out = folder / "tokens"
    write_token_cache(out, rows, codebook_size=codes, digest="d" * 64, class_names=names, recipe={})
    return out


def fit(folder: Path, steps: int, *overrides: str) -> GeneratorTraining:
    module: GeneratorTraining = train(tiny("generator", folder, *overrides), steps)
    return module


def test_classes_that_no_picture_has_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache(tmp_path, classes=3)
    fit(tmp_path, 1)
    assert "The cache has 3 classes, the generator 10: the last ones learn nothing." in caplog.text
    caplog.clear()
    fit(tmp_path, 1, "--define.num_classes", "3")
    assert "learn nothing" not in caplog.text


def test_it_learns_a_small_cache(tmp_path: Path) -> None:
    cache(tmp_path)
    module = fit(tmp_path, 60, "--model.generator.dropout", "0.0", "--model.warmup_steps", "5")
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 32, (1, 20)))  # the first image of the cache
    with torch.no_grad():
        logits = module.generator.eval()(tokens, torch.tensor([0]))
    nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert float(nats) < 2.5 < np.log(32)
    assert module.parents == {"tokenizer": "d" * 64}


def test_dropout_is_a_function_of_seed_and_step(tmp_path: Path) -> None:
    cache(tmp_path)
    first, second = (fit(tmp_path, 4).generator.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = fit(tmp_path, 4, "--model.seed", "1").generator.state_dict()
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_micro_batches_equal_one_batch(tmp_path: Path) -> None:
    cache(tmp_path)
    still = ["--model.generator.dropout", "0.0", "--model.class_dropout", "0.0"]
    whole = fit(tmp_path, 4, *still).generator.state_dict()
    parts = fit(tmp_path, 4, *still, "--data.micro_batch", "3").generator.state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], atol=2e-5, rtol=1e-4)


def test_compiled_blocks_train_the_same_weights(tmp_path: Path) -> None:
    cache(tmp_path)
    words = ["--model.generator.dropout", "0.0", "--model.compile_blocks", "true"]
    if not has_compiler():
        with pytest.raises(BadInput, match="compile_blocks needs a C"):
            fit(tmp_path, 1, *words)
        return
    plain = fit(tmp_path, 4, *words[:2]).generator.state_dict()
    for more in ([], ["--model.activation_checkpointing", "true"]):
        compiled = fit(tmp_path, 4, *words, *more).generator.state_dict()
        assert list(compiled) == list(plain)
        for name, tensor in plain.items():
            torch.testing.assert_close(compiled[name], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tokens": 18}, "18 tokens an image, the generator expects 20"),
        ({"codes": 64}, "64 codes, the generator's 32"),
        ({"classes": 11}, "11 classes"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(tmp_path: Path, arguments: dict[str, int], words: str) -> None:
    cache(tmp_path, **arguments)
    with pytest.raises(BadInput, match=words):
        fit(tmp_path, 1)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("--model.phases.main.trainable=[output]", "phases.main.trainable: only a tokenizer's"),
        ("--model.phases.main.adversarial=true", "phases.main.adversarial: only a tokenizer's"),
        ("--model.phases.main.quantize=false", "phases.main.quantize: only a tokenizer's"),
        ("--model.phases.main.weights={natss: 0.5}", "no loss 'natss'; did you mean 'nats'"),
        ("--model.clip=0", "clip must be above 0, not 0.* null turns it off"),
        ("--model.clip=-1", "clip must be above 0, not -1"),
    ],
)
def test_settings_that_would_do_nothing_or_harm_are_refused(tmp_path: Path, override: str, words: str) -> None:
    cache(tmp_path)
    with pytest.raises(BadInput, match=words):
        fit(tmp_path, 1, override)


def test_ids_beyond_the_codebook_are_refused_in_a_cache_that_does_not_name_its_own(tmp_path: Path) -> None:
    folder = cache(tmp_path, codes=64)
    (folder / "alitok.json").unlink()
    with (
        pytest.warns(UserWarning, match="cannot be checked"),
        pytest.raises(BadInput, match="outside its codebook of 32"),
    ):
        fit(tmp_path, 1)


def test_activation_checkpointing_changes_nothing_but_memory(tmp_path: Path) -> None:
    cache(tmp_path)
    kept = []

    def fit_counting(*overrides: str) -> dict[str, torch.Tensor]:
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            weights = fit(tmp_path, 3, "--model.warmup_steps", "0", *overrides).generator.state_dict()
        kept.append(sum(sizes))
        return weights

    plain, spared = fit_counting(), fit_counting("--model.activation_checkpointing", "true")  # dropout is on
    assert all(torch.equal(plain[name], spared[name]) for name in plain)
    assert kept[1] < 0.5 * kept[0]


def test_dropped_classes_do_not_depend_on_micro_batches(tmp_path: Path) -> None:
    cache(tmp_path)
    still = ["--model.generator.dropout", "0.0", "--model.class_dropout", "0.5"]
    whole = fit(tmp_path, 4, *still).generator.state_dict()
    parts = fit(tmp_path, 4, *still, "--data.micro_batch", "3").generator.state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(tensor, parts[name], atol=2e-5, rtol=1e-4)


def test_dropped_classes_are_sent_to_the_device_without_waiting_for_it(monkeypatch):
    """Through `send`, which pins them for a GPU."""
    sent = []

    def send(tensor, device):
        sent.append((tuple(tensor.shape), device.type))
        return tensor.to(device)

    monkeypatch.setattr(training, "send", send)
    module = SimpleNamespace(seed=0, class_dropout=0.5, generator=SimpleNamespace(num_classes=3))
    module.trainer = SimpleNamespace(datamodule=SimpleNamespace(global_batch=8))
    batch = {"position": torch.arange(8), "label": torch.zeros(8, dtype=torch.int64)}
    assert set(training.GeneratorTraining._drop_classes(module, batch, 0).tolist()) == {0, 3}
    assert sent == [((8,), "cpu")]


class Vectors(LossTerm):
    """A term that reads the codebook."""

    needs_codebook = True

    def use_codebook(self, quantizer: Quantizer) -> None:
        self.quantizer = quantizer

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> torch.Tensor:
        return self.quantizer.lookup(outputs["targets"]).mean()


@pytest.mark.parametrize(
    ("made_by", "codes", "words"),
    [
        ("this", 32, None),
        ("unknown", 32, None),
        ("unnamed", 32, "losses.vectors reads the codebook: set model.tokenizer"),
        ("another", 32, "tokens of tokenizer dddddddddddd, but model.tokenizer .* that made the cache"),
        ("unknown", 16, "has 1 x 16 codes, the generator 1 x 32"),
    ],
)
def test_the_codebook_is_that_of_the_cache(made_by: str, codes: int, words: str | None, tmp_path: Path) -> None:
    block = tiny("tokenizer-stage1", tmp_path, "--define.codebook_size", str(codes))["model"]["init_args"]["tokenizer"]
    card = save_artifact(tmp_path / "tokenizer", block, build(block), {"kind": "tokenizer"})
    digest = {"this": card["digest"], "another": "d" * 64}.get(made_by)
    ids = np.random.default_rng(0).integers(0, 32, (40, 2, 20))
    out, names = tmp_path / "tokens", [f"class {i}" for i in range(10)]
    rows = [(i % 10, ids[i]) for i in range(40)]
    write_token_cache(out, rows, codebook_size=32, digest=digest, class_names=names, recipe={})
    config = tiny("generator", tmp_path)
    config["model"]["init_args"] |= {
        "losses": {"vectors": {"class_path": "test_generator_training.Vectors"}},
        "tokenizer": None if made_by == "unnamed" else str(tmp_path / "tokenizer"),
    }
    with nullcontext() if words is None else pytest.raises(BadInput, match=words):
        train(config, 1)
