"""What is random in a step: on what it depends, and what a resumed run says if that changes."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import module_of, tiny, token_cache, train

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.losses.terms import LossTerm
from alitok.training.launch import run
from alitok.training.records import MicroBatch, StepRecord, tapped
from alitok.training.schedule import Schedule
from alitok.training.step import micro_batches
from alitok.training.terms import Terms

QUICK = ["--trainer.limit_val_batches", "0", "--trainer.callbacks.curves", "null"]
QUICK += ["--trainer.logger.tensorboard", "null"]
GENERATOR = [*QUICK, "--model.phases.main.steps", "4", "--trainer.callbacks.samples", "null"]
GENERATOR += ["--model.generator.dropout", "0.1"]
TOKENIZER = [*QUICK, "--model.phases", "{continuous: null, main: {steps: 4, lr: 1.e-3}}"]
TOKENIZER += ["--trainer.callbacks.grid", "null"]


def draws(ranks: int, micro_batch: int, step: int = 7, seed: int = 3, images: int = 16) -> dict[int, float]:
    """The first number that torch's own generator gives in each micro-batch of a step, by the first place."""
    drawn = {}
    for rank in range(ranks):
        data = SimpleNamespace(micro_batch=micro_batch, global_batch=images)
        trainer = SimpleNamespace(datamodule=data, world_size=ranks)
        schedule = SimpleNamespace(total_steps=9)
        module: Any = SimpleNamespace(seed=seed, global_rank=rank, trainer=trainer, schedule=schedule)
        batch = {"index": torch.arange(images // ranks)}
        for part in micro_batches(module, batch, step):
            assert (part.step.number, part.step.size) == (step, images)
            drawn[part.step.places.start] = float(torch.rand(()))
    return drawn


def test_no_two_micro_batches_of_a_step_draw_the_same_on_any_process() -> None:
    drawn = draws(ranks=4, micro_batch=2)
    assert list(drawn) == list(range(0, 16, 2))
    assert len(set(drawn.values())) == len(drawn)
    assert drawn == draws(ranks=1, micro_batch=2) == draws(ranks=2, micro_batch=2)
    for other in (draws(1, 2, step=8), draws(1, 2, seed=4)):
        assert not set(other.values()) & set(drawn.values())


def test_another_cut_is_announced_if_dropout_depends_on_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    token_cache(tmp_path)
    run("fit", tiny("generator", tmp_path, *GENERATOR, "--trainer.max_steps", "2"))
    with caplog.at_level(logging.WARNING, "alitok"):
        run("fit", tiny("generator", tmp_path, *GENERATOR, "--trainer.max_steps", "3", "--data.micro_batch", "8"))
        assert caplog.messages == []
        run("fit", tiny("generator", tmp_path, *GENERATOR, "--data.micro_batch", "4"))
    assert caplog.messages == [
        "Dropout draws other masks from here on: the global batch is cut into 2 micro-batches, before into 1."
    ]


def test_random_anchors_and_bottlenecks_need_no_announcement(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dropper = "{class_path: alitok.ideas.nested_dropout.NestedDropout, init_args: {code_dim: 4}}"
    words = [*TOKENIZER, "--model.tokenizer.bottleneck", dropper, "--model.tokenizer.quantizer.anchor", "random"]
    run("fit", tiny("tokenizer-stage1", tmp_path, *words, "--trainer.max_steps", "2"))
    run("fit", tiny("tokenizer-stage1", tmp_path, *words, "--data.micro_batch", "4"))
    assert "micro-batches" not in caplog.text


class Model(torch.nn.Module):
    """Encodes once, and decodes as often as is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = torch.nn.Identity(), torch.nn.Identity()

    def forward(self, x: torch.Tensor, times: int) -> dict[str, Any]:
        latents = self.encoder(x)
        images = [{"image": self.decoder(latents + turn)} for turn in range(max(1, times))]
        return {**images[0], "decodings": [(1.0, one) for one in images]} if times else images[0]


@pytest.mark.parametrize("times", [0, 1, 3])
def test_each_decoding_gets_what_was_tapped_in_it(times: int) -> None:
    model = Model()
    with tapped(model, ["encoder", "decoder"]) as seen:
        outputs = seen.join(model(torch.zeros(()), times))
    assert outputs["decoder"] is outputs["image"]
    for turn, (_, one) in enumerate(outputs.get("decodings", [])):
        assert one["decoder"] is one["image"]
        assert (float(one["decoder"]), float(one["encoder"])) == (turn, 0)
    assert not model.decoder._forward_hooks


def test_a_pass_without_a_gradient_is_not_the_step() -> None:
    """GFT runs the generator without a class first. In a validation no pass has a gradient."""
    model, x = Model(), torch.ones((), requires_grad=True)
    with tapped(model, ["decoder"]) as seen:
        with torch.no_grad():
            plain = model(x, 0)
        outputs = seen.join(model(x + 1, 0))
    assert outputs["decoder"] is outputs["image"]
    with tapped(model, ["decoder"]) as seen, torch.no_grad():
        outputs = seen.join(model(x, 0))
    assert outputs["decoder"] is outputs["image"] is not plain["image"]


class FromTheFirst(LossTerm):
    """The distance of a decoding's value from the first one's; 10 for the first itself."""

    def compute(self, batch: Any, outputs: Any, step: Any) -> torch.Tensor:
        return outputs["value"] - outputs["first"]["value"] if "first" in outputs else torch.tensor(10.0)


def test_a_term_compares_a_decoding_with_the_first() -> None:
    schedule = Schedule({"main": {"steps": 1, "lr": 1.0}})
    terms = Terms({"far": {"class_path": "test_base.FromTheFirst"}}, schedule, Model())
    part = MicroBatch({"image": torch.zeros(1)}, 1.0, Step.alone(1), True)
    decodings = [(weight, {"value": torch.tensor(value)}) for weight, value in ((1.0, 1.0), (0.5, 3.0), (2.0, 6.0))]
    record = StepRecord(0, False)
    loss = terms.loss(part, {**decodings[0][1], "decodings": decodings}, schedule.at(0), record)
    assert float(loss) == float(record.notes["far"]) == 10 + 0.5 * (3 - 1) + 2 * (6 - 1)
    assert all("first" not in one for _, one in decodings)


def test_a_term_may_be_called_quantizer_but_not_loss(tmp_path: Path) -> None:
    """Statistics of a term and of the quantizer stay apart."""
    vq = "{class_path: alitok.losses.terms.QuantizerLoss}"
    words = ["--model.losses.vq", "null", "--model.losses.quantizer", vq]
    words += ["--model.phases", "{continuous: null, main: {steps: 1, lr: 1.e-3}}"]
    config = tiny("tokenizer-stage1", tmp_path, *words)
    module = train(config, 1)
    assert float(module.tokenizer.quantizer.usage.sum()) > 0
    with pytest.raises(BadInput, match=r"losses\.loss: the logs use this name"):
        module_of(tiny("tokenizer-stage1", tmp_path, "--model.losses.loss", vq))
    for name in ("half", "type", "keys"):  # of nn.Module and nn.ModuleDict
        with pytest.raises(BadInput, match=rf"losses\.{name}: torch takes no module of this name"):
            module_of(tiny("tokenizer-stage1", tmp_path, f"--model.losses.{name}", vq))
