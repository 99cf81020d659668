"""One process, DDP and FSDP2 on two train the same weights, and take each other's checkpoints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from safetensors.torch import load_file
from tiny import module_of, tiny, token_cache
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode

from alitok.artifacts.folder import read_card, save_artifact
from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.losses.adversarial import BlurDiscriminator, MagvitGAN
from alitok.models.generator import Generator
from alitok.models.quantizer import ClusteredQuantizer
from alitok.reports.curves import read_curves
from alitok.studies.processes import two_processes
from alitok.training.launch import run
from alitok.training.parallel import FSDP2, check_replicas, gradient_norm, shard, synced_last

TOLERANCE = 1e-5
# 160 tokens a batch: no code has exactly its expected share of them, where its bias would have a gradient of rounding
# errors alone, which Adam blows up to whole steps.
CODES = 7
STRATEGY = {
    "single": ["--trainer.devices", "1"],
    "ddp": ["--trainer.devices", "2", "--trainer.strategy", "ddp"],
    "fsdp": ["--trainer.devices", "2", "--trainer.strategy.class_path", "alitok.training.parallel.FSDP2"],
}
COMMON = ["--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1", "--trainer.limit_val_batches", "0"]
COMMON += ["--trainer.callbacks.grid", "null", "--trainer.callbacks.curves", "null"]
COMMON += ["--trainer.logger.tensorboard", "null"]
COMMON += [
    "--model.warmup_steps",
    "0",
    "--trainer.callbacks.progress",
    "null",
    "--trainer.enable_progress_bar",
    "false",
]
# without the maximum pool, which passes its gradient to the larger of two numbers that may be equal but for rounding
SIZES = "{width: 32, stages: [32, 32], groups: 8, map_size: 8}"
SMOOTH = f"{{class_path: test_strategies.SmoothDiscriminator, init_args: {SIZES}}}"
QUIET = "{class_path: test_strategies.QuietGAN, init_args: {weight: 0.01}}"
GAN = ["--model.discriminator", SMOOTH, "--model.adversarial", QUIET]
# Adam does not see the scale of a loss. But a gradient that is zero, or nearly, is rounding errors alone (the bias of
# the keys always is, as softmax does not see it), and Adam blows these up to whole steps unless its epsilon holds them
# down. So all losses are small.
SMALL = "{mse: 0.1, vq: 0.1, prefix: 0.1}"
# 20 updates of each part: in the adversarial phase every second batch is the discriminator's
OPTIONS = {
    "tokenizer-stage1": [
        *GAN,
        "--model.phases",
        f"{{continuous: null, main: {{steps: 20, lr: 1.e-4, weights: {SMALL}}},"
        f" gan: {{steps: 40, lr: 1.e-4, adversarial: true, weights: {SMALL}}}}}",
        "--model.codebook_lr",
        "1.0",
        "--model.tokenizer.quantizer.anchor",
        "nearest",
        "--define.codebook_size",
        str(CODES),
    ],
    "tokenizer-stage2": [
        *GAN,
        "--model.phases",
        "{main: {steps: 40, lr: 1.e-4, adversarial: true, weights: {mse: 0.1}}}",
        "--define.codebook_size",
        str(CODES),
    ],
    "generator": [
        "--model.phases",
        "{main: {steps: 20, lr: 1.e-4}}",
        "--model.generator.dropout",
        "0.0",
        "--define.codebook_size",
        str(CODES),
        "--trainer.callbacks.samples",
        "null",
        "--trainer.callbacks.accuracy",
        "null",
    ],
}
FOLDER = {"tokenizer-stage1": "stage1", "tokenizer-stage2": "stage2", "generator": "generator"}


def configuration(name: str, folder: Path, strategy: str, shared: Path, *options: str) -> dict[str, Any]:
    """Of a run in `folder`; stage 2 starts from the stage 1 of `shared`, the generator from its tokens."""
    given = {
        "tokenizer-stage1": ["--model.start_from", str(shared / "begin")],
        "tokenizer-stage2": ["--model.start_from", str(shared / "single" / "stage1" / "artifact")],
        "generator": ["--define.cache", str(shared / "tokens")],
    }[name]
    return tiny(name, folder, *COMMON, *OPTIONS[name], *given, *STRATEGY[strategy], *options)


def begin(folder: Path) -> None:
    """What stage 1 starts from: codes as far apart as the features are.

    Codes that start closer together than that get the same nearest feature, lie on one another after the first
    clustering update, and which of the two is nearer to a token is then up to rounding.
    """
    config = tiny("tokenizer-stage1", folder, *OPTIONS["tokenizer-stage1"])
    tokenizer = module_of(config).tokenizer
    torch.nn.init.normal_(tokenizer.quantizer.codebook.weight)
    save_artifact(folder / "begin", tokenizer.block, tokenizer, {"kind": "tokenizer"})


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    artifact = folder / FOLDER[name] / "artifact"
    tensors = load_file(artifact / "model.safetensors")
    if (artifact / "discriminator.safetensors").exists():
        judge = load_file(artifact / "discriminator.safetensors")
        tensors |= {f"discriminator.{key}": value for key, value in judge.items()}
    return tensors


def losses(folder: Path, name: str) -> dict[str, dict[int, float]]:
    curves = read_curves(folder / FOLDER[name])
    return {key: dict(points) for key, points in curves.items() if key.startswith("train/") and "norm" not in key}


def first_weights(shared: Path) -> dict[str, Tensor]:
    """The weights of the generator before its first step."""
    config = configuration("generator", shared, "single", shared)
    torch.manual_seed(config["seed_everything"])
    return build(config["model"]["init_args"]["generator"]).state_dict()


def furthest(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[key] - second[key]).abs().max()) for key in first)


def furthest_loss(first: dict[str, dict[int, float]], second: dict[str, dict[int, float]]) -> float:
    assert first.keys() == second.keys()
    assert all(first[key].keys() == second[key].keys() for key in first)
    return max(abs(first[key][step] - second[key][step]) for key in first for step in first[key])


# Under which strategies a run goes on, and to which step: every change from one strategy to another occurs.
CHAINS = {
    "tokenizer-stage1": [("single", 18), ("ddp", 34), ("fsdp", 47), ("single", 60)],
    "generator": [("single", 5), ("fsdp", 10), ("ddp", 15), ("single", 20)],
}
# The quantizer is fitted at the start and again after three steps.
FIT = [
    *("--model.tokenizer.quantizer.class_path", "test_strategies.Fitted", "--trainer.max_steps", "6"),
    *("--model.phases", f"{{continuous: null, main: {{steps: 3, fit: 2, lr: 1.e-4, weights: {SMALL}}},"),
]
FIT[-1] += f" gan: {{steps: 40, fit: 3, lr: 1.e-4, adversarial: true, weights: {SMALL}}}}}"
# What is random in a step: random anchors are those of the global batch, dropout those of a micro-batch of 4.
DRAWN = {
    "anchors": ("tokenizer-stage1", ["--model.tokenizer.quantizer.anchor", "random", "--trainer.max_steps", "6"]),
    "fit": ("tokenizer-stage1", FIT),
    "dropout": ("generator", ["--model.generator.dropout", "0.3", "--trainer.max_steps", "6"]),
}
HALF = ["--trainer.precision", "bf16-mixed", "--trainer.max_steps", "6", "--model.activation_checkpointing", "true"]
HALF += ["--model.phases", "{main: {steps: 20, lr: 1.e-3}}"]
VALIDATE = ["--trainer.limit_val_batches", "1.0", "--data.val_count", "17", "--data.micro_batch", "3"]


def link(name: str, shared: Path, number: int) -> None:
    """One link of a chain."""
    strategy, steps = CHAINS[name][number]
    run("fit", configuration(name, shared / "chain", strategy, shared, "--trainer.max_steps", str(steps)))


def drawn(shared: Path, strategy: str, micro_batch: int = 4) -> None:
    """The runs of DRAWN; two processes have 4 images each."""
    for key, (name, options) in DRAWN.items():
        folder = shared / f"{key}-{strategy}-{micro_batch}"
        cut = ["--data.micro_batch", str(micro_batch)]
        run("fit", configuration(name, folder, strategy, shared, *options, *cut))


def half(shared: Path, strategy: str) -> None:
    """A few steps in bf16 with activation checkpointing, and validation with a picture of samples."""
    samples = {"class_path": "alitok.callbacks.pictures.SampleGrid", "init_args": {"classes": 2, "rows": 1}}
    samples["init_args"]["tokenizer"] = str(shared / "single" / "stage1" / "artifact")
    options = [*HALF, "--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "6"]
    config = configuration("generator", shared / f"half-{strategy}", strategy, shared, *options)
    config["trainer"]["callbacks"]["samples"] = samples
    config["data"]["init_args"]["cache"] = str(shared / "half" / "tokens")
    run("fit", config)


class Fitted(ClusteredQuantizer):
    """Codes are the latents of evenly spaced tokens of all batches."""

    def fit(self, batches: Iterator[Tensor]) -> None:
        given = list(batches)
        assert all(part.shape == (8, 20, 4) for part in given)
        self.fitted = [*getattr(self, "fitted", []), len(given)]
        tokens = torch.cat(given).flatten(0, 1)
        with torch.no_grad():
            self.codebook.weight.copy_(tokens[:: len(tokens) // self.codebook_size][: self.codebook_size])


class SmoothDiscriminator(BlurDiscriminator):
    """Without kinks: the gradient of LeakyReLU jumps at 0, and rounding decides on which side of it a value lies."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        for layer in [self.block_in, *self.blocks, self.to_logits]:
            for name, child in layer.named_children():
                if isinstance(child, nn.LeakyReLU):
                    setattr(layer, name, nn.SiLU())


class QuietGAN(MagvitGAN):
    """With a hundredth of the discriminator's loss."""

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, statistics = super().discriminator_loss(real_logits, fake_logits)
        return 0.01 * loss, statistics


class Seen(Callback):
    """Keeps which images a process validates."""

    def __init__(self, folder: str) -> None:
        self.folder, self.indices = Path(folder), []

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *rest: Any) -> None:
        self.indices += batch["index"].tolist()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        content = {"indices": self.indices, "values": values}
        (self.folder / f"{trainer.world_size}-{trainer.global_rank}.json").write_text(json.dumps(content))


def validate(shared: Path, strategy: str) -> None:
    seen = f"{{class_path: test_strategies.Seen, init_args: {{folder: '{shared}'}}}}"
    options = [*VALIDATE, "--trainer.callbacks.seen", seen]
    run("validate", configuration("tokenizer-stage1", shared / "single", strategy, shared, *options))


def reductions(rank: int, shared: Path) -> None:
    """How often FSDP2 sends gradients in a step of three micro-batches, and the gradient of a weight."""
    found: dict[str, Any] = {}
    for once in (True, False):
        torch.manual_seed(0)
        model = Generator(16, 3, 2, (2, 2), width=32, depth=2, heads=2, dropout=0.0)
        torch.nn.init.normal_(model.output.weight)
        shard(model, init_device_mesh("cpu", (2,)), "32-true")
        strategy, numbers = FSDP2(reduce_once=once), torch.Generator().manual_seed(rank)
        with CommDebugMode() as sent:
            for part in range(3):
                ids = torch.randint(16, (2, 6), generator=numbers)
                loss = model.losses(ids, torch.tensor([0, 1]))["nats"].mean()
                with synced_last(strategy, model, part == 2, averaged=True):
                    loss.backward()
        counts = {str(operation): count for operation, count in sent.get_comm_counts().items()}
        gradients: list[Any] = [parameter.grad for parameter in model.parameters()]
        norm = torch.cat([whole.full_tensor().flatten() for whole in gradients]).norm()
        torch.testing.assert_close(gradient_norm(list(model.parameters())), norm, rtol=1e-4, atol=0)
        gradient: Any = model.blocks[0].mlp.w1.weight.grad
        found[str(once)] = {
            "sent": sum(count for operation, count in counts.items() if "reduce_scatter" in operation),
            "gradient": gradient.full_tensor().flatten()[:20].tolist(),
        }
    if rank == 0:
        (shared / "reductions.json").write_text(json.dumps(found))


def work(rank: int, shared: Path) -> None:
    for strategy in ("ddp", "fsdp"):
        for name in OPTIONS:
            run("fit", configuration(name, shared / strategy, strategy, shared, "--data.micro_batch", "2"))
    for name in CHAINS:
        for number in (1, 2):
            link(name, shared, number)
    for strategy in ("ddp", "fsdp"):
        drawn(shared, strategy)
    half(shared, "fsdp")
    validate(shared, "ddp")
    average = ["--trainer.callbacks.average.class_path", "alitok.callbacks.average.WeightAverage"]
    config = configuration("generator", shared / "average", "fsdp", shared, *average)
    with pytest.raises(BadInput, match="average of the weights cannot be kept while FSDP"):
        run("fit", config)
    reductions(rank, shared)
    replica = torch.nn.Linear(3, 2)
    torch.nn.init.ones_(replica.weight)
    torch.nn.init.zeros_(replica.bias)
    check_replicas(replica)
    torch.nn.init.constant_(replica.bias[1], float(rank) * 1e-30)
    with pytest.raises(BadInput, match="bias on process 1 is not that of process 0"):
        check_replicas(replica)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of every module under every strategy, the distributed ones in micro-batches of 2 of their 4 images."""
    folder = tmp_path_factory.mktemp("strategies")
    token_cache(folder, codes=CODES)
    begin(folder)
    for name in OPTIONS:
        run("fit", configuration(name, folder / "single", "single", folder))
    for name in CHAINS:
        link(name, folder, 0)
    digest = read_card(folder / "single" / "stage1" / "artifact")["digest"]
    token_cache(folder / "half", codes=CODES, digest=digest)
    for micro_batch in (8, 4):
        drawn(folder, "single", micro_batch)
    half(folder, "single")
    validate(folder, "single")
    two_processes(work, folder)
    for name in CHAINS:
        link(name, folder, 3)
    return folder


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", OPTIONS)
def test_strategies_agree(name: str, strategy: str, shared: Path) -> None:
    single, other = weights(shared / "single", name), weights(shared / strategy, name)
    assert furthest(single, other) < TOLERANCE
    assert furthest_loss(losses(shared / "single", name), losses(shared / strategy, name)) < TOLERANCE


def test_fsdp_sends_gradients_once_a_step(shared: Path) -> None:
    """Two blocks and the rest: three units."""
    found = json.loads((shared / "reductions.json").read_text())
    assert (found["True"]["sent"], found["False"]["sent"]) == (3, 9)
    assert found["True"]["gradient"] == pytest.approx(found["False"]["gradient"], abs=1e-6)
    assert any(found["True"]["gradient"])


@pytest.mark.parametrize("name", OPTIONS)
def test_the_weights_have_moved(name: str, shared: Path) -> None:
    """By at least a hundred times the tolerance, in each part that trains."""
    start = module_of(configuration(name, shared / "single", "single", shared))
    if name != "generator":
        source = "begin" if name == "tokenizer-stage1" else "single/stage1/artifact"
        start._start_from(str(shared / source))
    prefix = "generator." if name == "generator" else "tokenizer."
    before = {key.removeprefix(prefix): tensor for key, tensor in start.state_dict().items()}
    after = weights(shared / "single", name)
    parts = {
        "tokenizer-stage1": ("encoder.", "quantizer.codebook", "decoder.", "discriminator."),
        "tokenizer-stage2": ("decoder.", "discriminator."),
        "generator": ("",),
    }[name]
    for part in parts:
        moved = {key: tensor for key, tensor in after.items() if key.startswith(part)}
        assert furthest(moved, {key: before[key] for key in moved}) >= 100 * TOLERANCE, part


@pytest.mark.parametrize("way", ["single-8", "ddp-4", "fsdp-4"])
@pytest.mark.parametrize("key", DRAWN)
def test_what_is_drawn_in_a_step_is_the_same_on_any_devices(key: str, way: str, shared: Path) -> None:
    """Dropout alone depends on the micro-batches: of all 8 images it draws other masks than of 4."""
    name, _ = DRAWN[key]
    difference = furthest(weights(shared / f"{key}-single-4", name), weights(shared / f"{key}-{way}", name))
    assert (difference < TOLERANCE) == (way != "single-8" or key != "dropout"), difference


@pytest.mark.parametrize("name", CHAINS)
def test_a_checkpoint_goes_on_under_any_other_strategy(name: str, shared: Path) -> None:
    assert furthest(weights(shared / "single", name), weights(shared / "chain", name)) < TOLERANCE
    assert furthest_loss(losses(shared / "single", name), losses(shared / "chain", name)) < TOLERANCE


def test_fsdp_in_bf16_is_bf16_of_one_process_but_for_rounding(shared: Path) -> None:
    single, sharded = (losses(shared / f"half-{strategy}", "generator") for strategy in ("single", "fsdp"))
    values = list(single["train/loss"].values())
    assert furthest_loss(single, sharded) < 0.2 * (max(values) - min(values))
    state = weights(shared / "half-fsdp", "generator")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    moved = torch.cat([(state[name] - other).abs().flatten() for name, other in first_weights(shared).items()])
    apart = weights(shared / "half-single", "generator")
    apart_by = torch.cat([(state[name] - other).abs().flatten() for name, other in apart.items()])
    assert float(apart_by.mean()) < 0.1 * float(moved.mean())
    (picture,) = (shared / "half-fsdp" / "generator" / "pictures").iterdir()
    assert picture.read_bytes() == (shared / "half-single" / "generator" / "pictures" / picture.name).read_bytes()


def test_validation_sees_each_image_once_and_gives_the_same_numbers(shared: Path) -> None:
    alone, first, second = (json.loads((shared / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert sorted(first["indices"] + second["indices"]) == sorted(alone["indices"]) == list(range(17))
    assert first["values"] == second["values"]
    for name, value in alone["values"].items():
        assert first["values"][name] == pytest.approx(value, abs=1e-5), name
