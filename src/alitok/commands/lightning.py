"""What fit, validate and test share: one composed configuration, handed to the Lightning CLI."""

import argparse
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from alitok.common.build import build, import_class, is_class_block
from alitok.common.errors import BadInput
from alitok.common.files import atomic_file
from alitok.config import DEFAULTS, compose_run, resolve

TAKES_OVERRIDES = True

_runs = itertools.count()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--config", action="append", required=True, metavar="FILE", help="YAML; laid in order")
    parser.epilog = "any --key value overrides the files, e.g. --data.global_batch 32 --trainer.devices 2"


def launch(verb: str, args: argparse.Namespace) -> None:
    """Composes the configuration and runs it; a finished fit says so, an interrupted one goes on."""
    # Before compose_run, which takes seconds: it imports Lightning.
    check_weight_files(resolve([DEFAULTS, *args.config], args.overrides))
    run(verb, compose_run(args.config, args.overrides))


def run(verb: str, config: dict[str, Any]) -> None:
    """Runs `fit`, `validate` or `test` for a composed configuration."""
    check_weight_files(config)
    root = Path(config["trainer"]["default_root_dir"])
    total = total_steps(config)
    config.pop("define", None)
    if verb == "fit" and finished(root, total):
        print(f"{root / 'artifact'} is finished ({total:,} steps); name another folder to train anew.")
        return
    if "ckpt_path" not in config:
        last = root / "checkpoints" / "last.ckpt"
        if last.exists():
            config["ckpt_path"] = str(last)
        elif verb != "fit":
            raise BadInput(f"No checkpoint in {root / 'checkpoints'}: train first, or give --ckpt_path.")
    module, data = _build(verb, config)
    if verb == "fit":
        with atomic_file(root / "config.yaml") as file:
            file.write_text(yaml.safe_dump(config, sort_keys=False))
    _lightning_cli(verb, config, total, module, data)


def _build(verb: str, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Model and data of a run; whatever is missing or does not fit is found before anything is written."""
    from lightning import seed_everything

    from alitok.artifacts.folder import locate, read_card

    _quiet()
    arguments = config["model"].get("init_args") or {}
    if verb == "fit" and arguments.get("start_from"):
        read_card(locate(arguments["start_from"]))
    data = _shallow(config["data"])
    data.setup(verb)
    seed_everything(config["seed_everything"], verbose=False)
    return _shallow(config["model"]), data


def check_weight_files(config: Mapping[str, Any]) -> None:
    """Raises BadInput for a loss term whose weight file is missing; what else may be wrong is left to `compose`."""
    arguments = _map(_map(config.get("model")).get("init_args"))
    phases = [_map(phase) for phase in _map(arguments.get("phases")).values()]
    for name, block in _map(arguments.get("losses")).items():
        if is_class_block(block) and any(_map(phase.get("weights")).get(name, 1) for phase in phases):
            build(block).check()


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def total_steps(config: Mapping[str, Any]) -> int:
    """Steps of the whole schedule, or `trainer.max_steps` where it is given."""
    from alitok.training.schedule import Schedule

    given = config["trainer"].get("max_steps")
    return given or Schedule(config["model"]["init_args"]["phases"]).total_steps


def finished(root: Path, total: int) -> bool:
    """Whether the run's artifact holds all its steps."""
    import json

    card = root / "artifact" / "card.json"
    return card.is_file() and (json.loads(card.read_text()).get("steps") or 0) >= total


def _quiet() -> None:
    """Silences advice that does not hold here (the configuration comes composed, frozen parts are meant), and ads."""
    import logging
    import warnings

    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "(?s)LightningCLI's args parameter.*",
        ".*does not have many workers.*",
        "(?s).*ModelCheckpoint with manual optimization.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _lightning_cli(verb: str, config: Mapping[str, Any], total: int, module: Any, data: Any) -> None:
    from lightning import LightningDataModule, LightningModule
    from lightning.pytorch.cli import LightningCLI

    trainer = dict(config["trainer"])
    for name in ("callbacks", "logger"):
        if isinstance(trainer.get(name), Mapping):
            trainer[name] = list(trainer[name].values())
    trainer |= {"max_steps": total, "max_epochs": -1, "use_distributed_sampler": False}
    trainer["check_val_every_n_epoch"] = None  # an endless loader has one epoch; validation goes by steps

    # Handed over ready-made: their keys are composed and checked, and the CLI's parser would build the class blocks
    # inside, which the modules want as they are (artifacts are written with them).
    def ready_module() -> LightningModule:
        return module

    def ready_data() -> LightningDataModule:
        return data

    # The parser keeps a class for each factory by name: a second run in this process (the demo has three) needs others.
    for factory in (ready_module, ready_data):
        factory.__qualname__ = f"{factory.__name__}_{next(_runs)}"
    options = {key: config[key] for key in ("seed_everything", "ckpt_path") if key in config}
    LightningCLI(
        ready_module,
        ready_data,
        save_config_callback=None,
        args={"subcommand": verb, verb: {**options, "trainer": trainer}},
    )


def _shallow(block: Mapping[str, Any]) -> Any:
    """The object of a class block; blocks inside are its arguments as they are."""
    return import_class(block["class_path"])(**(block.get("init_args") or {}))
