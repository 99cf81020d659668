"""The demo's configurations at a size that steps in milliseconds, for tests."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback

from alitok.common.build import import_class
from alitok.config import compose_run
from alitok.data.shapes import Shapes
from alitok.data.token_shards import write_token_cache
from alitok.training.bare import bare_trainer

DEMO = Path(__file__).parents[1] / "experiments" / "demo"
SMALL = ["--define.image_size", "32", "--define.patch_size", "8", "--define.num_prefix", "4"]
SMALL += ["--define.codebook_size", "32", "--define.code_dim", "4", "--model.tokenizer.encoder.num_latents", "20"]
for part in ("encoder", "decoder"):
    SMALL += [f"--model.tokenizer.{part}.width", "32", f"--model.tokenizer.{part}.depth", "1"]
    SMALL += [f"--model.tokenizer.{part}.heads", "2"]
SMALL += ["--data.global_batch", "8", "--data.count", "64", "--data.val_count", "16"]
GENERATOR = ["--define.num_prefix", "4", "--define.codebook_size", "32", "--model.generator.grid", "[4, 4]"]
GENERATOR += ["--model.generator.width", "32", "--model.generator.depth", "2", "--model.generator.heads", "2"]
GENERATOR += ["--data.global_batch", "8"]
GAN = [
    "--model.discriminator",
    "{class_path: alitok.losses.adversarial.BlurDiscriminator,"
    " init_args: {width: 32, stages: [32, 32], groups: 8, map_size: 4}}",
    "--model.adversarial",
    "{class_path: alitok.losses.adversarial.HingeGAN}",
]


def tiny(name: str, run: Path, *overrides: str) -> dict[str, Any]:
    """The composed configuration `experiments/demo/NAME.yaml`, tiny, with its run under `run`."""
    small = GENERATOR if name == "generator" else SMALL
    return compose_run([DEMO / f"{name}.yaml"], ["--define.run", str(run), *small, *overrides])


def module_of(config: dict[str, Any]) -> Any:
    """The LightningModule of a composed configuration, its weights drawn from seed 0."""
    torch.manual_seed(0)
    return import_class(config["model"]["class_path"])(**config["model"]["init_args"])


class Finite(Callback):
    """A step that is not finite changes no weight, so a test of the weights alone would not see it."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        assert not bool(outputs["record"].bad)


def train(config: dict[str, Any], steps: int) -> Any:
    """The module after `steps` finite steps, without the command's callbacks."""
    module = module_of(config)
    data = import_class(config["data"]["class_path"])(**config["data"]["init_args"])
    trainer = bare_trainer(steps, callbacks=[Finite()])
    trainer.fit(module, datamodule=data)
    assert trainer.global_step == steps
    return module


def token_cache(folder: Path, images: int = 40, codes: int = 32, digest: str = "d" * 64) -> Path:
    """A cache of random tokens that fits the tiny generator, as `folder / "tokens"`."""
    generator = torch.Generator().manual_seed(0)
    rows = [(i % 10, torch.randint(codes, (2, 20), generator=generator).numpy()) for i in range(images)]
    names = Shapes("train").class_names
    out = folder / "tokens"
    write_token_cache(out, rows, codebook_size=codes, digest=digest, class_names=names, recipe={})
    return out
