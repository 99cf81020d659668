"""The cost of a run: parameters as published, FLOPs against a hand count, memory against a real step."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import GAN, tiny
from torch import nn

from alitok.common.errors import BadInput
from alitok.config import compose_run
from alitok.networks.classifier import Classifier
from alitok.profiling.cost import Cost, Layout, cost
from alitok.profiling.flops import Ledger
from alitok.profiling.record import chosen

ROOT = Path(__file__).parents[2] / "experiments"
SIZES = [
    (ROOT / folder / "generator.yaml", path)
    for folder in ("imagenet256", "imagenet512", "release")
    for path in sorted(ROOT.glob("sizes/*.yaml"))
]
WHOLE = [(path,) for path in sorted(ROOT.glob("*/*.yaml")) if path.stem.startswith(("tokenizer", "generator"))]
LARGE = ("imagenet", "release")
GENERATORS = {"177M": 177_048_064, "318M": 317_851_648, "662M": 662_141_696}
ONE_PHASE = ["--model.phases.warmup", "null", "--model.phases.gan", "null"]
NO_NETWORK = ["--model.phases.main.weights.convnext", "0"]


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


def name(files: tuple[Path, ...]) -> str:
    return "-".join([files[0].parent.name, *(file.stem for file in files)])


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(files, id=name(files), marks=[pytest.mark.slow] if files[0].parent.name.startswith(LARGE) else [])
        for files in [*WHOLE, *SIZES]
    ],
)
def test_every_configuration_is_described_without_being_allocated(files: tuple[Path, ...]) -> None:
    config = compose_run(files)
    before = resident()
    result = cost(config, Layout("cuda"))
    assert resident() - before < 300e6  # the smallest of the large ones holds 700 MB of weights
    assert result.steps == sum(phase["steps"] for phase in config["model"]["init_args"]["phases"].values())
    assert result.images_seen == result.steps * config["data"]["init_args"]["global_batch"]
    assert 0 < result.trainable <= result.total
    parameters = 6 * result.trainable * result.tokens * result.global_batch
    assert sum(result.flops.values()) > 0.5 * parameters
    assert result.peak.memory_bytes > 16 * result.trainable


@pytest.mark.parametrize("size", GENERATORS)
def test_published_generators(size: str) -> None:
    result = cost(compose_run([ROOT / "release/generator.yaml", ROOT / f"sizes/{size}.yaml"]), Layout("cuda"))
    assert result.total == result.trainable == sum(result.parts.values()) == GENERATORS[size]
    assert result.tokens == 273


@pytest.mark.parametrize(
    ("stage", "total", "trainable"), [(1, 390_623_032, 390_623_032), (2, 389_899_308, 303_479_564)]
)
def test_published_tokenizers(stage: int, total: int, trainable: int) -> None:
    overrides = [*ONE_PHASE, *(NO_NETWORK if stage == 1 else [])]
    config = compose_run([ROOT / f"release/tokenizer-stage{stage}.yaml"], overrides)
    result = cost(config, Layout("cuda"))
    assert (result.total, result.trainable) == (total, trainable)
    assert set(result.parts) == {"encoder", "quantizer", "decoder"}
    assert result.beside == ({} if stage == 1 else {"ConvNeXt-S": 50_223_688})


def test_the_ledger_counts_a_linear_layer_exactly() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        first, second, x = nn.Linear(30, 70, bias=False), nn.Linear(70, 5, bias=False), torch.randn(11, 30)
        with Ledger() as ledger:
            ledger.claim([*first.parameters(), *second.parameters()], "weights")
            ledger.attribute(first, "first")
            for layer in (first, second):
                ledger.claim_gradient(layer.weight)
            hidden = first(x)
            second(hidden).sum().backward()
            live = dict(ledger.live)
    assert ledger.flops == {
        ("first", "float32"): 2 * 2 * 11 * 30 * 70,  # forward and weight gradient; x takes none
        ("other", "float32"): 3 * 2 * 11 * 70 * 5,
    }
    assert live["weights"] == live["gradients"] == 4 * (30 * 70 + 70 * 5)


def test_generator_flops_against_a_hand_count(tmp_path: Path) -> None:
    width, depth, tokens, batch, codes, hidden = 32, 2, 20, 8, 32, 128
    result = cost(tiny("generator", tmp_path), Layout("cuda"))
    products = depth * (4 * width * width + 3 * width * hidden) + width * codes
    attention = depth * 2 * tokens * width  # scores and values, each T x T x width
    forward = 2 * batch * tokens * (products + attention)
    # backward: two products for one; attention five for two, as the kernel computes the scores again
    backward = 2 * batch * tokens * (2 * products + attention * 5 / 2)
    assert sum(result.flops.values()) == forward + backward
    assert {part for part, _ in result.flops} == {"generator"}


def test_a_step_of_each_kind_and_its_parts(tmp_path: Path) -> None:
    phases = ["--model.phases.main.steps", "10", "--model.phases.gan", "{steps: 7, lr: 1.e-4, adversarial: true}"]
    result = cost(tiny("tokenizer-stage1", tmp_path, *GAN, *phases), Layout("cpu"))
    turns = {turn.name: turn for turn in result.turns}
    assert [turn.steps for turn in result.turns][-3:] == [10, 4, 3]
    assert [*turns][-3:] == ["main", "gan", "gan discriminator"]
    parts = [{part for part, _ in turns[turn].flops} for turn in ("main", "gan", "gan discriminator")]
    assert parts == [{"tokenizer"}, {"tokenizer", "discriminator"}, {"tokenizer", "discriminator"}]

    def of(turn: str, part: str) -> float:
        return sum(count for (where, _), count in turns[turn].flops.items() if where == part)

    assert of("gan", "tokenizer") == of("main", "tokenizer")
    assert of("gan discriminator", "tokenizer") < 0.4 * of("main", "tokenizer")  # forward only
    assert of("gan discriminator", "discriminator") > of("gan", "discriminator")  # real and fake
    assert "discriminator" in result.beside
    assert result.total == sum(result.parts.values())


def test_max_steps_cuts_and_prolongs_the_schedule(tmp_path: Path) -> None:
    for steps in (5, 100_000):
        assert cost(tiny("generator", tmp_path, "--trainer.max_steps", str(steps)), Layout("cpu")).steps == steps


def describe_large_generator(layout: Layout, *overrides: str) -> Cost:
    files = [ROOT / "release/generator.yaml"]
    return cost(compose_run(files, ["--model.generator.depth", "2", *overrides]), layout)


def test_strategies_share_what_they_share() -> None:
    one = describe_large_generator(Layout("cuda"), "--data.global_batch", "128").peak.memory
    ddp = describe_large_generator(Layout("cuda", 8, "ddp"), "--data.global_batch", "1024").peak.memory
    fsdp = describe_large_generator(Layout("cuda", 8, "fsdp", 8), "--data.global_batch", "1024").peak.memory
    assert {kind: size for kind, size in ddp.items() if kind != "ddp"} == one
    assert ddp["ddp"] == one["weights"] - 274 * 24 * 2 * 4  # buckets of the gradients; the rotary table has none
    assert fsdp["optimizer"] == pytest.approx(one["optimizer"] / 8, rel=1e-3)
    assert fsdp["weights"] == pytest.approx(one["weights"] / 8, rel=0.02)
    assert fsdp["activations"] == one["activations"]


def test_micro_batches_and_recomputing_save_activations() -> None:
    def take(*overrides: str) -> dict[str, int]:
        return describe_large_generator(Layout("cuda"), "--data.global_batch", "128", *overrides).peak.memory

    whole, halves = take(), take("--data.micro_batch", "32")
    assert halves["activations"] < 0.3 * whole["activations"]
    assert halves["gradients"] > 0.99 * (halves["weights"] - 1e6)  # those of the parts before are kept
    assert take("--model.activation_checkpointing", "true")["activations"] < 0.5 * whole["activations"]


def test_precision_and_device_decide_what_is_kept() -> None:
    def take(device: Any, precision: str, *more: str) -> Cost:
        overrides = ["--data.global_batch", "128", "--trainer.precision", precision, *more]
        return describe_large_generator(Layout(device), *overrides)

    half, single = take("cuda", "bf16-mixed"), take("cuda", "32-true")
    assert {precision for _, precision in half.flops} == {"bfloat16"}
    assert {precision for _, precision in single.flops} == {"tf32"}
    assert {precision for _, precision in take("cuda", "32-true", "--model.tf32", "false").flops} == {"float32"}
    assert half.peak.memory["activations"] < 0.85 * single.peak.memory["activations"]
    # dropout's attention weights, which a GPU's kernel does not keep
    assert take("cpu", "32-true").peak.memory["activations"] > 1.3 * single.peak.memory["activations"]


def test_what_cannot_be_described_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not divide by 3 devices"):
        cost(tiny("generator", tmp_path), Layout("cpu", 3, "ddp"))
    with pytest.raises(BadInput, match="knows the precisions"):
        cost(tiny("generator", tmp_path, "--trainer.precision", "64-true"), Layout("cpu"))


# A process of its own: what earlier tests left in the allocator would hide what a step takes.
STEPS = """
import json, sys, types, warnings
import lightning as L
import torch, torchmetrics, torchvision
from alitok.common.build import import_class
from alitok.profiling.cost import Layout, cost
from alitok.config import compose_run

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

config = compose_run(json.loads(sys.argv[1]), json.loads(sys.argv[2]))
expected = cost(config, Layout("cpu")).peak.memory_bytes
arguments = config["data"]["init_args"]
batch, tokens = arguments["global_batch"], "cache" in arguments

class Data(L.LightningDataModule):
    def __init__(self):
        super().__init__()
        self.global_batch, self.micro_batch = batch, arguments.get("micro_batch")
        self.token_cache = None
        self.splits = {}

    def train_dataloader(self):
        return torch.utils.data.DataLoader(Batches(), batch_size=None)

class Batches(torch.utils.data.IterableDataset):
    def __iter__(self):
        for step in range(1000):
            place = torch.arange(step * batch, (step + 1) * batch)
            item = {"label": place * 0, "index": place, "position": place}
            if tokens:
                yield {"tokens": torch.randint(0, module.model.codebook_size, (batch, module.model.num_tokens)), **item}
            else:
                size = module.model.image_size
                yield {"image": torch.rand(batch, 3, size, size), **item}

warnings.filterwarnings("ignore")
before = status("VmRSS")
module = import_class(config["model"]["class_path"])(**config["model"]["init_args"])
data = Data()
if tokens:
    cache = types.SimpleNamespace(codebook_size=None, sub_codes=1, class_names=[], digest=None)
    cache.num_tokens = module.model.num_tokens
    data.token_cache = cache
trainer = L.Trainer(
    max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
    enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
    precision=config["trainer"]["precision"],
)
trainer.fit(module, datamodule=data)
print(json.dumps([expected, status("VmHWM") - before]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "overrides"),
    [
        (["demo/tokenizer-stage1.yaml"], []),
        (["demo/generator.yaml"], []),
        (["cifar10/tokenizer-stage1.yaml"], []),
        (["cifar10/generator.yaml"], []),
        (
            ["imagenet256/generator.yaml", "sizes/177M.yaml"],
            ["--data.global_batch", "2", "--trainer.precision", "32-true"],
        ),
    ],
    ids=["demo-stage1", "demo-generator", "cifar10-stage1", "cifar10-generator", "177M"],
)
def test_memory_is_that_of_a_real_run(files: list[str], overrides: list[str]) -> None:
    paths = json.dumps([str(ROOT / file) for file in files])
    result = subprocess.run(
        [sys.executable, "-c", STEPS, paths, json.dumps(overrides)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected, measured = json.loads(result.stdout.splitlines()[-1])
    assert expected == pytest.approx(measured, rel=0.15)


def test_a_term_of_another_artifact_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    files = [ROOT / "demo" / "generator.yaml", ROOT / "ideas" / "rear.yaml"]
    plain, with_terms = (cost(compose_run(some), Layout("cpu")) for some in (files[:1], files))
    assert sum(with_terms.flops.values()) == sum(plain.flops.values())
    heads = 2 * (192 * 2048 + 2048 + 2048 * 16 + 16)  # in memory they are counted
    assert with_terms.peak.memory["weights"] == plain.peak.memory["weights"] + 4 * heads
    said = capsys.readouterr().err
    assert [said.count(f"losses.{name} reads another artifact") for name in ("current", "next")] == [1, 1]
    assert chosen(compose_run(files)["model"])["bottleneck"] is None


FEATURES = {"class_path": "alitok.losses.perceptual.ClassifierFeatures", "weights": "FOLDER"}
GRAM = {"class_path": "alitok.ideas.gram.ClassifierGram", "weights": "FOLDER"}
TEACHER = {"class_path": "alitok.ideas.shared.teachers.ClassifierMap", "folder": "FOLDER", "width": 4}
SEMANTIC = {"class_path": "alitok.ideas.semantic.Semantic", "teacher": TEACHER}


@pytest.mark.parametrize("block", [FEATURES, GRAM, SEMANTIC], ids=["features", "gram", "teacher"])
def test_what_reads_a_classifier_is_counted(block: dict, tmp_path: Path) -> None:
    """A file of the project's own is there, and reading it on fake tensors would fail."""
    Classifier(3, 4).save(tmp_path / "classifier")
    text = json.dumps({"model": {"losses": {"extra": block}}}).replace("FOLDER", str(tmp_path / "classifier"))
    (tmp_path / "extra.yaml").write_text(text)
    files = [ROOT / "demo" / "tokenizer-stage1.yaml", tmp_path / "extra.yaml"]
    plain, more = (cost(compose_run(some), Layout("cpu")) for some in (files[:1], files))
    assert sum(count for (part, _), count in more.flops.items() if part == "loss extra") > 0
    assert sum(more.flops.values()) > sum(plain.flops.values())
