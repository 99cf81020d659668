"""The contract on every idea, and that it catches what it is there for."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alitok.common.random import Step
from alitok.config import compose_run
from alitok.losses.terms import LossTerm
from alitok.models.generator import Generator
from alitok.models.seams import Bottleneck, Decoding, Quantized, Quantizer
from alitok.studies import contract, small

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
DEMO = EXPERIMENTS / "demo"
IDEAS = sorted((EXPERIMENTS / "ideas").glob("*.yaml"))
# A bottleneck, terms with heads, a head without logits; end_to_end/test_ideas.py trains and resumes all of them.
QUICK = ("nested-dropout", "rear", "masked-bits")


def stack_of(idea: Path) -> small.Stack:
    """The base with the smallest images."""
    return min(small.stacks(idea), key=lambda stack: "demo" not in str(stack[0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contract")


@pytest.fixture(scope="module")
def strategies(folder: Path) -> dict[str, list[contract.Finding]]:
    """What two processes find, one pair of them for all ideas."""
    jobs: dict[str, Any] = {}
    for idea in IDEAS:
        place = folder / f"strategies-{idea.stem}"
        config = small.small(compose_run(stack_of(idea), ["--define.run", str(place)]))
        small.prepare(config)
        if contract.couples_images(config):
            continue
        whole, micro = contract.micro_batch_finding(config)
        assert micro.fault is None, (idea.stem, micro)
        jobs[idea.stem] = (config, whole)
    return contract.strategy_findings(jobs, folder)


@pytest.mark.parametrize(
    "idea",
    [pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow]) for path in IDEAS],
)
def test_an_idea_keeps_the_contract(idea: Path, tmp_path: Path) -> None:
    found = list(contract.findings(stack_of(idea), tmp_path))
    assert [finding for finding in found if finding.fault] == []
    assert len(found) == 4


@pytest.mark.slow
@pytest.mark.parametrize("idea", IDEAS, ids=lambda path: path.stem)
def test_the_gradient_of_an_idea_is_the_same_under_every_strategy(
    idea: Path, strategies: dict[str, list[contract.Finding]]
) -> None:
    for finding in strategies.get(idea.stem, []):
        assert finding.fault is None, finding


class SeesItsTarget(Generator):
    """Reads the token that it predicts."""

    def place(self, x: Tensor, order: Tensor | None) -> Tensor:
        return x + x.roll(-1, dims=1)


class ForgetsPositions(Generator):
    """Its cached step knows no positions."""

    def step(self, x: Tensor, position: Tensor, cache: Any) -> Tensor:
        rope, self.rope = self.rope, torch.zeros_like(self.rope)
        self.rope[..., 0] = 1
        hidden = super().step(x, position, cache)
        self.rope = rope
        return hidden


class DrawsByProcess(Bottleneck):
    """Draws the same numbers for every part of a batch."""

    def forward(self, tokens: Quantized, quantizer: Quantizer, step: Step) -> list[Decoding]:
        noise = torch.randn(tokens.decodable.shape, generator=step.stream("noise"))
        return [Decoding(latents=tokens.decodable + noise)]


class DrawsAnew(Bottleneck):
    """Draws from a generator of its own, which no checkpoint keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.random = torch.Generator().manual_seed(0)

    def forward(self, tokens: Quantized, quantizer: Quantizer, step: Step) -> list[Decoding]:
        return [Decoding(latents=tokens.decodable + torch.randn(tokens.decodable.shape, generator=self.random))]


class HeadInTheModel(LossTerm):
    """Hangs what it trains on the model."""

    def attach(self, model: nn.Module) -> None:
        model.extra = nn.Linear(1, 1)

    def compute(self, batch: Any, outputs: Any, step: Step | None) -> Tensor:
        return outputs["latents"].float().mean()


def faults(base: str, folder: Path, *overrides: str) -> dict[str, str]:
    found = contract.findings([DEMO / base], folder, overrides)
    return {finding.rule: finding.fault for finding in found if finding.fault}


def test_a_generator_that_sees_its_target_is_caught(tmp_path: Path) -> None:
    words = ["--model.generator.class_path", "test_contract.SeesItsTarget"]
    assert (
        "sees the token that it predicts"
        in faults("generator.yaml", tmp_path, *words)["what it states it can do holds"]
    )


def test_positions_left_out_of_the_step_are_caught(tmp_path: Path) -> None:
    words = ["--model.generator.class_path", "test_contract.ForgetsPositions"]
    fault = faults("generator.yaml", tmp_path, *words)["what it states it can do holds"]
    assert "is not its forward pass" in fault


def test_a_head_that_lands_in_the_artifact_is_caught(tmp_path: Path) -> None:
    words = ["--model.losses.head.class_path", "test_contract.HeadInTheModel"]
    fault = faults("tokenizer-stage1.yaml", tmp_path, *words)
    assert "extra" in fault["its artifact holds the model alone and gives the same outputs"]


def test_a_run_that_does_not_resume_is_caught(tmp_path: Path) -> None:
    words = ["--model.tokenizer.bottleneck.class_path", "test_contract.DrawsAnew"]
    fault = faults("tokenizer-stage1.yaml", tmp_path, *words)
    assert "differs after a resumed run" in fault["it trains three steps and resumes to the same weights"]


def test_numbers_that_are_equal_on_two_ranks_are_caught(tmp_path: Path) -> None:
    words = ["--model.tokenizer.bottleneck.class_path", "test_contract.DrawsByProcess", "--define.run", str(tmp_path)]
    config = small.small(compose_run([DEMO / "tokenizer-stage1.yaml"], words))
    config["model"]["init_args"]["phases"].pop("continuous", None)
    small.prepare(config)
    _, finding = contract.micro_batch_finding(copy.deepcopy(config))
    assert finding.fault is not None
    assert "draw by the places of `Step`" in finding.fault


def test_a_part_that_subclasses_no_seam_is_refused(tmp_path: Path) -> None:
    words = ["--model.tokenizer.bottleneck.class_path", "torch.nn.Identity", "--define.run", str(tmp_path)]
    with pytest.raises(Exception, match="Identity is no"):
        compose_run([DEMO / "tokenizer-stage1.yaml"], words)
