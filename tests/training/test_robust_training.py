"""Perturbation in the training step, and the decoder's post-training on given tokens."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from tiny import DEMO, SMALL, module_of, train
from torch import Tensor

from alitok.artifacts.folder import load_tokenizer, save_artifact
from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.config import compose_run
from alitok.data.pictures import to_tensor
from alitok.data.sources import fingerprint
from alitok.data.token_shards import TokenShards
from alitok.ideas.perturbation import LatentPerturbation
from alitok.ideas.post_training import PairedDataModule
from alitok.losses.terms import MSE
from alitok.training.launch import run
from alitok.training.tokenizer import TokenizerTraining

IDEAS = DEMO.parent / "ideas"
PERTURBED = ["--model.phases", "{continuous: null, main: {steps: 4, lr: 1.e-3, shape: linear}}"]
PERTURBED += ["--model.tokenizer.bottleneck.beta", "0.5", "--model.tokenizer.bottleneck.delta", "8"]
POST = ["--model.phases.post", "{steps: 2, lr: 1.e-3, adversarial: false}", "--data.global_batch", "8"]


def config_of(stage: str, idea: str, folder: Path, *overrides: str) -> dict[str, Any]:
    files = [DEMO / f"tokenizer-{stage}.yaml", IDEAS / f"{idea}.yaml"]
    return compose_run(files, ["--define.run", str(folder), *SMALL, "--model.warmup_steps", "0", *overrides])


def test_perturbation_is_the_same_in_micro_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []
    gradients: list[dict[str, Tensor]] = []
    forward = LatentPerturbation.forward

    def keep_place(self: LatentPerturbation, tokens: Any, quantizer: Any, step: Any) -> Any:
        asked.append((step.number, step.places.start, step.size))
        return forward(self, tokens, quantizer, step)

    def keep_gradients(module: TokenizerTraining, optimizer: Any) -> None:
        gradients.append({name: p.grad.clone() for name, p in module.tokenizer.named_parameters()})

    monkeypatch.setattr(LatentPerturbation, "forward", keep_place)
    monkeypatch.setattr(TokenizerTraining, "on_before_optimizer_step", keep_gradients)
    for micro in ("8", "2"):
        train(config_of("stage1", "perturbation", tmp_path, *PERTURBED, "--data.micro_batch", micro), 1)
    assert asked == [(0, 0, 8), (0, 0, 8), (0, 2, 8), (0, 4, 8), (0, 6, 8)]
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-3, atol=1e-6, msg=name)
    train(config_of("stage1", "perturbation", tmp_path, *PERTURBED, "--model.tokenizer.bottleneck.alpha", "0.0"), 1)
    plain = gradients[2]["decoder.image_head.linear.weight"]
    assert not torch.allclose(gradients[0]["decoder.image_head.linear.weight"], plain, rtol=1e-3, atol=1e-6)


@pytest.fixture
def stage2(tmp_path: Path) -> Path:
    """A run's folder with the artifact that is post-trained, and pairs for its eight training images."""
    config = config_of("stage2", "post-training", tmp_path)
    block = config["model"]["init_args"]["tokenizer"]
    torch.manual_seed(3)
    tokenizer = build(block)
    card = save_artifact(tmp_path / "stage2" / "artifact", block, tokenizer, {"kind": "tokenizer"})
    write_pairs(tmp_path / "pairs", config, card["digest"])
    return tmp_path


def write_pairs(folder: Path, config: dict[str, Any], digest: str) -> Tensor:
    """Random pairs (images, 2, N) for the images of a configuration."""
    source = PairedDataModule(**config["data"]["init_args"]).open_split("train")
    ids = torch.randint(32, (len(source), 2, 20), generator=torch.Generator().manual_seed(0))
    job = {"source": fingerprint(source), "digest": digest, "recipe": {"sigma": 0.5}, "precision": "32"}
    shards = TokenShards(folder, job, len(ids), codebook_size=32, class_names=source.class_names)
    shards.work.begin()
    shards.write(0, [index % 10 for index in range(len(ids))], list(ids.numpy()), [])
    shards.finish({**job, "source_description": source.description})
    return ids


def test_a_batch_holds_center_crops_and_the_tokens_of_its_images(stage2: Path) -> None:
    arguments = config_of("stage2", "post-training", stage2)["data"]["init_args"]
    batches = {}
    for form in ("direct", "reencoded"):
        data = PairedDataModule(**{**arguments, "form": form, "augment": True})
        data.trainer = SimpleNamespace(global_rank=0, world_size=1, num_devices=1, global_step=0, training=True)
        data.setup("fit")
        batches[form] = data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0)
        plain = data.splits["train"].source[int(batches[form]["index"][0])][0]
        assert torch.equal(batches[form]["image"][0], to_tensor(plain))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(32, (64, 2, 20), generator=generator)
    for view, batch in enumerate(batches.values()):
        assert torch.equal(batch["tokens"], ids[batch["index"], view])
    data.trainer.training = False
    assert "tokens" not in data.on_before_batch_transfer({"index": torch.zeros(1)}, 0)


def test_only_the_decoder_learns_and_from_the_given_tokens(stage2: Path) -> None:
    before = load_tokenizer(stage2 / "stage2" / "artifact")
    seen: list[tuple[dict[str, Any], dict[str, Any]]] = []
    config = config_of("stage2", "post-training", stage2, *POST)
    config["model"]["init_args"]["losses"]["mse"]["class_path"] = f"{__name__}.Spy"
    Spy.seen = seen
    run("fit", config)
    batch, outputs = seen[0]
    assert torch.equal(outputs["ids"], batch["tokens"])
    expected = before.decoder(before.quantizer.lookup(batch["tokens"]))["image"]
    torch.testing.assert_close(outputs["image"], expected)
    after = load_tokenizer(stage2 / "post" / "artifact")
    assert after.card["digest"] == before.card["digest"]
    moved = {name for name, t in after.state_dict().items() if not torch.equal(t, before.state_dict()[name])}
    assert moved
    assert all(name.startswith("decoder.") for name in moved)


class Spy(MSE):
    """An MSE that keeps what it is given."""

    seen: ClassVar[list[Any]] = []

    def compute(self, batch: Any, outputs: Any, step: Any) -> Tensor:
        if "tokens" in batch:
            self.seen.append((dict(batch), {k: v for k, v in outputs.items() if isinstance(v, Tensor)}))
        return super().compute(batch, outputs, step)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--model.trainable", "[encoder, decoder]"], r"trainable to \[decoder\]"),
        (["--data.count", "32"], "give data.source and data.count"),
        (["--data.form", "both"], "must be direct or reencoded"),
        (["--data.pairs", "nowhere"], "nowhere does not exist"),
    ],
)
def test_refusals(stage2: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        run("fit", config_of("stage2", "post-training", stage2, *POST, *overrides))


def test_pairs_of_another_codebook_are_refused(stage2: Path) -> None:
    config = config_of("stage2", "post-training", stage2, *POST, "--define.pairs", str(stage2 / "others"))
    write_pairs(stage2 / "others", config, "e" * 64)
    with pytest.raises(BadInput, match="of tokenizer eeeeeeeeeeee"):
        run("fit", config)


def test_every_schedule_of_the_card_is_the_yamls(tmp_path: Path) -> None:
    config = compose_run([DEMO / "generator.yaml", IDEAS / "softcfg.yaml"])
    config["model"]["init_args"]["generator"]["init_args"] |= {"width": 32, "depth": 1, "heads": 2}
    assert module_of(config).recommended["schedule"] == "softcfg"
