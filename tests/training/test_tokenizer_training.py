"""Training of both stages: what moves, what must not, and in which order."""

from pathlib import Path
from typing import Any

import pytest
import torch
from test_strategies import Fitted
from tiny import GAN, module_of, tiny, train
from torch import Tensor

from alitok.artifacts.folder import load_extra, load_tokenizer
from alitok.common.errors import BadInput
from alitok.training.launch import run
from alitok.training.tokenizer import TokenizerTraining

STAGE1 = [
    "--model.phases",
    "{continuous: null, main: {steps: 3, lr: 1.e-3, shape: linear}}",
    "--model.warmup_steps",
    "0",
]


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the artifact of a stage 1 that ended in a GAN phase."""
    folder = tmp_path_factory.mktemp("run")
    phases = "{continuous: {steps: 1}, main: {steps: 1}, gan: {steps: 4, lr: 1.e-3, adversarial: true}}"
    run("fit", tiny("tokenizer-stage1", folder, *GAN, "--model.phases", phases, "--model.warmup_steps", "0"))
    return folder


def test_stage_1_trains_every_part_and_updates_the_codebook_once_a_batch(tmp_path: Path) -> None:
    config = tiny("tokenizer-stage1", tmp_path, *STAGE1)
    before = weights(module_of(config).tokenizer)
    module = train(config, 3)
    moved = changed(before, weights(module.tokenizer))
    for part in ("encoder.patch_embed", "encoder.latent_tokens", "decoder.prefix_head", "quantizer.codebook"):
        assert any(name.startswith(part) for name in moved), part
    # p after three batches whose shares each sum to one
    assert float(module.tokenizer.quantizer.usage.sum()) == pytest.approx(1 - 0.99**3, rel=1e-5)


def test_micro_batches_equal_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Tensor]] = []

    def keep_gradients(module: TokenizerTraining, optimizer: Any) -> None:
        seen.append({name: p.grad.clone() for name, p in module.tokenizer.named_parameters()})

    monkeypatch.setattr(TokenizerTraining, "on_before_optimizer_step", keep_gradients)
    whole = train(tiny("tokenizer-stage1", tmp_path, *STAGE1), 1)
    parts = train(tiny("tokenizer-stage1", tmp_path, *STAGE1, "--data.micro_batch", "3"), 1)
    assert torch.equal(whole.tokenizer.quantizer.usage, parts.tokenizer.quantizer.usage)
    for name, gradient in seen[0].items():
        torch.testing.assert_close(gradient, seen[1][name], atol=1e-7, rtol=1e-4)


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    config = tiny("tokenizer-stage1", tmp_path, *STAGE1)
    assert not changed(weights(train(config, 3)), weights(train(config, 3)))


def test_discriminator_batches_move_the_discriminator_and_the_clustering_alone(tmp_path: Path) -> None:
    phases = "{continuous: null, main: null, gan: {steps: 4, lr: 1.e-3, adversarial: true}}"
    config = tiny("tokenizer-stage1", tmp_path, *GAN, "--model.phases", phases, "--model.warmup_steps", "0")
    first, second = train(config, 1), train(config, 2)
    assert first.discriminator is not None
    assert second.discriminator is not None
    start = module_of(config)
    assert not changed(weights(start.discriminator), weights(first.discriminator))  # the generator's turn
    assert changed(weights(first.discriminator), weights(second.discriminator))
    moved = changed(weights(first.tokenizer), weights(second.tokenizer))
    assert moved <= {"quantizer.usage", "quantizer.codebook.weight"}
    assert "quantizer.usage" in moved


def test_stage_2_starts_from_stage_1_and_freezes_all_but_the_decoder(stage1: Path) -> None:
    config = tiny("tokenizer-stage2", stage1, *GAN, "--model.phases.main", "{steps: 4, lr: 1.e-3, adversarial: true}")
    parent = load_tokenizer(stage1 / "stage1" / "artifact").state_dict()
    start = module_of(config)
    fresh = weights(start.tokenizer)
    start._start_from(config["model"]["init_args"]["start_from"])
    begun = weights(start.tokenizer)
    assert set(start.fresh) == {"decoder.buffer_tokens", "decoder.positions"}
    for name, tensor in begun.items():
        source = fresh if name in start.fresh else parent
        assert torch.equal(tensor, source[name]), name
    assert not any(name.startswith("decoder.prefix_head") for name in begun)
    judge = load_extra(stage1 / "stage1" / "artifact", "discriminator")
    assert judge is not None
    assert start.discriminator is not None
    assert not changed(weights(judge), weights(start.discriminator))

    after = weights(train(config, 4).tokenizer)
    moved = changed(begun, after)
    assert all(name.startswith("decoder.") for name in moved)
    assert "decoder.buffer_tokens" in moved
    frozen = [name for name in begun if name.startswith(("encoder.", "quantizer."))]
    assert all(torch.equal(parent[name], after[name]) for name in frozen)


def test_stage_2_gets_no_gradient_outside_the_decoder(stage1: Path) -> None:
    module = module_of(tiny("tokenizer-stage2", stage1))
    trained = {name.split(".")[0] for name, p in module.tokenizer.named_parameters() if p.requires_grad}
    assert trained == {"decoder"}
    module.train()
    assert not module.tokenizer.quantizer.training
    assert module.tokenizer.decoder.training
    names = {name for group in module.configure_optimizers()[0].param_groups for name in group["param_names"]}
    assert all(name.startswith("decoder.") for name in names)


def test_both_stages_share_the_digest(stage1: Path) -> None:
    run("fit", tiny("tokenizer-stage2", stage1, "--model.phases.main.steps", "2"))
    cards = [load_tokenizer(stage1 / name / "artifact").card for name in ("stage1", "stage2")]
    assert cards[0]["digest"] == cards[1]["digest"]
    assert cards[1]["parents"] == {"stage1": cards[0]["digest"]}
    assert cards[1]["class_names"][0] == "circle"


def test_an_encoder_of_another_size_is_refused(stage1: Path) -> None:
    module = module_of(tiny("tokenizer-stage2", stage1, "--model.tokenizer.encoder.width", "64"))
    with pytest.raises(BadInput, match=r"encoder\..* does not fit"):
        module._start_from(str(stage1 / "stage1" / "artifact"))


def test_checkpoints_hold_no_perceptual_network(tmp_path: Path) -> None:
    term = "{class_path: alitok.losses.perceptual.ConvNeXtLogits, init_args: {weights: 'random:0'}}"
    config = tiny("tokenizer-stage1", tmp_path, *STAGE1, "--model.losses.convnext", term)
    module = train(config, 1)
    assert "convnext" in module.terms
    assert {name.split(".")[0] for name in module.state_dict()} == {"tokenizer"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--model.phases.main.weights.prefx", "2"], "prefx.*prefix"),
        (["--model.trainable", "[decodr]"], "decodr.*decoder"),
        (["--model.phases.main.adversarial", "true"], "discriminator"),
    ],
)
def test_bad_configurations(tmp_path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        module_of(tiny("tokenizer-stage1", tmp_path, *overrides))


def test_weight_decay_falls_on_every_parameter(tmp_path: Path) -> None:
    module = module_of(tiny("tokenizer-stage1", tmp_path, *STAGE1))
    (optimizer,) = module.configure_optimizers()
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(held) == len(list(module.tokenizer.parameters()))


FITTED = ["--model.tokenizer.quantizer.class_path", "test_strategies.Fitted", "--model.warmup_steps", "0"]
FITTED += ["--model.phases", "{continuous: {steps: 2, fit: 0}, main: {steps: 3, fit: 2, lr: 1.e-3}}"]


def test_a_phase_begins_with_fitting_the_quantizer_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = train(tiny("tokenizer-stage1", tmp_path, *FITTED), 5)
    assert module.tokenizer.quantizer.fitted == [2]
    assert module.tokenizer.training
    fitted: list[int] = []
    original = Fitted.fit
    monkeypatch.setattr(Fitted, "fit", lambda self, batches: (fitted.append(1), original(self, batches)))
    ends = {}
    for name, stops in (("whole", [5]), ("before", [2, 5]), ("within", [3, 5])):
        for stop in stops:
            run("fit", tiny("tokenizer-stage1", tmp_path / name, *FITTED, "--trainer.max_steps", str(stop)))
        ends[name] = load_tokenizer(tmp_path / name / "stage1" / "artifact").state_dict()
        assert len(fitted) == 1, name
        fitted.clear()
    for name in ("before", "within"):
        assert all(torch.equal(tensor, ends["whole"][key]) for key, tensor in ends[name].items()), name


@pytest.mark.parametrize(
    ("name", "words", "sentence"),
    [
        ("tokenizer-stage1", ["--model.phases.main.fit", "2"], "ClusteredQuantizer cannot be fitted"),
        ("tokenizer-stage1", [*FITTED, "--model.phases.main.fit", "-1"], "must be 0 .do not fit. or a number"),
        ("generator", ["--model.phases.main.fit", "2"], "only a tokenizer's phases fit"),
    ],
)
def test_what_cannot_be_fitted_is_refused_at_the_start(
    name: str, words: list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=sentence):
        module_of(tiny(name, tmp_path, *words))
