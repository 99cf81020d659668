"""Runs `fit`, `validate` and `test`: passes a composed configuration to the Lightning CLI."""

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from alitok.common.build import build_a, import_class, is_class_block
from alitok.common.ends import alone_in, end_of_run
from alitok.common.errors import BadInput
from alitok.common.files import check_readable_name, write_text
from alitok.common.work import read_settings
from alitok.config import DEFAULTS, compose_run, resolve
from alitok.training.changes import check_changes, compare, grave_changes


def start(verb: str, files: Sequence[str], overrides: Sequence[str], allow_changes: bool = False) -> None:
    """Composes the configuration and runs it. Reports a finished fit, and continues an interrupted one."""
    # Checked before compose_run, which imports Lightning and takes seconds.
    early = resolve([DEFAULTS, *files], overrides)
    if not (verb == "fit" and _seems_finished(early)):
        check_weight_files(early)
    run(verb, compose_run(files, overrides), allow_changes, weights_checked=True)


def run(verb: str, config: dict[str, Any], allow_changes: bool = False, weights_checked: bool = False) -> None:
    """Runs `fit`, `validate` or `test` for a composed configuration.

    Args:
        allow_changes: continue a run whose configuration has changed.
        weights_checked: `check_weight_files` has been called.

    Raises:
        BadInput: something that the run needs is missing, the checkpoint is of a different run, or the disk is full.
        KeyboardInterrupt: Ctrl-C.
    """
    root = Path(config["trainer"]["default_root_dir"])
    check_readable_name(root)
    total = total_steps(config)
    if verb == "fit" and finished(config, total):
        kept = root / "config.yaml"
        other = grave_changes(compare(yaml.safe_load(kept.read_text()) or {}, config)) if kept.is_file() else ""
        with_other = f", with other settings ({other})" if other else ""
        end = (
            f"{artifact_folder(config)} is finished ({steps_done(config):,} steps){with_other}; name another folder to"
            " train again."
        )
        _say(end, sys.stdout)
        return
    config = {key: value for key, value in config.items() if key != "define"}
    if not weights_checked:
        check_weight_files(config)
    checkpoint = _resume_point(verb, config.pop("ckpt_path", None), root)
    module, data = _build(verb, config)
    for line in data.found.lines():
        _say(line, sys.stdout)
    arguments = config if checkpoint is None else {**config, "ckpt_path": str(checkpoint)}
    if verb != "fit":
        _lightning_cli(verb, arguments, total, module, data)
        return
    module.configuration, module.resumed = {**config, "data found": data.descriptions["train"]}, checkpoint is not None
    if checkpoint is not None:
        _announce_changes(checkpoint, module.configuration, allow_changes)
    with alone_in(root) if _is_main() else nullcontext():
        if _is_main():
            write_text(root / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        _lightning_cli(verb, arguments, total, module, data)


def _resume_point(verb: str, given: str | None, root: Path) -> Path | None:
    """The checkpoint to continue from: the one given, or the newest whole one of the run."""
    from alitok.training.checkpoint import is_whole, newest

    if given not in (None, "last"):
        path = Path(str(given))
        if not path.is_file():
            raise BadInput(f"There is no checkpoint {path}; give a file, or `last`.")
        if not is_whole(path):
            raise BadInput(f"Checkpoint {path} is damaged; give another, or `last`.")
        return path
    folder = root / "checkpoints"
    path_or_none, damaged = newest(folder)
    for path in damaged:
        _say(f"alitok: {path} is damaged and passed over.", sys.stderr)
    if path_or_none is None and verb != "fit":
        raise BadInput(f"No checkpoint in {folder}: train first, or give --ckpt_path.")
    return path_or_none


def _announce_changes(checkpoint: Path, configuration: Mapping[str, Any], allow: bool) -> None:
    from alitok.training.checkpoint import read_checkpoint

    before = read_checkpoint(checkpoint).get("configuration")
    for line in check_changes(before, configuration, allow, str(checkpoint)) if before else ():
        _say(f"alitok: {line}", sys.stderr)


def _is_main() -> bool:
    """Whether this is the process of a launch that prints and writes."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0


def _say(line: str, stream: Any) -> None:
    if _is_main():
        print(line, file=stream, flush=True)


def _build(verb: str, config: Mapping[str, Any]) -> tuple[Any, Any]:
    """Builds the model and data of a run, and checks them before anything is written."""
    from lightning import seed_everything

    from alitok.artifacts.folder import locate, read_card

    quiet()
    _check_trainer(config["trainer"])
    arguments = config["model"].get("init_args") or {}
    if verb == "fit" and arguments.get("start_from"):
        read_card(locate(arguments["start_from"]))
    data = _shallow(config["data"])
    data.setup(verb)
    seed_everything(config["seed_everything"], verbose=False)
    module = _shallow(config["model"])
    size = module.tokenizer.image_size if module.kind == "tokenizer" else data.image_size
    if size != data.image_size:
        raise BadInput(f"The tokenizer takes images of {size} pixels, but data.image_size is {data.image_size}.")
    return module, data


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    """Raises BadInput for values that Lightning takes, but not with these modules, and for a missing logger."""
    from importlib.util import find_spec

    for name, usual, instead in (
        ("gradient_clip_val", None, "model.clip"),
        ("accumulate_grad_batches", 1, "data.micro_batch"),
    ):
        if trainer.get(name) not in (None, usual):
            raise BadInput(f"trainer.{name} has no effect here, since a step is the module's own: set {instead}.")
    interval = trainer.get("val_check_interval")
    if isinstance(interval, int) and interval < 1:
        raise BadInput(
            f"trainer.val_check_interval must be at least 1 step, not {interval}; "
            "--trainer.limit_val_batches 0 leaves validation out."
        )
    for block in _map(trainer.get("logger")).values():
        if str(_map(block).get("class_path")).lower().endswith(("wandb", "wandblogger")) and find_spec("wandb") is None:
            raise BadInput("Weights & Biases is not installed: pip install 'alitok[wandb]', or leave its logger out.")


def check_weight_files(config: Mapping[str, Any]) -> None:
    """Raises BadInput if the weight file of a loss term is missing. `compose` reports other errors."""
    arguments = _map(_map(config.get("model")).get("init_args"))
    from alitok.losses.terms import LossTerm

    phases = [_map(phase) for phase in _map(arguments.get("phases")).values()]
    for name, block in _map(arguments.get("losses")).items():
        if is_class_block(block) and any(_map(phase.get("weights")).get(name, 1) for phase in phases):
            build_a(LossTerm, block).check()


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _seems_finished(config: Mapping[str, Any]) -> bool:
    """`finished` for a configuration that is not checked yet. `compose` reports its errors."""
    arguments = _map(_map(config.get("model")).get("init_args"))
    root = _map(config.get("trainer")).get("default_root_dir")
    steps = [_map(phase).get("steps") for phase in _map(arguments.get("phases")).values()]
    if root is None or not steps or not all(isinstance(count, int) for count in steps):
        return False
    return finished(config, total_steps(config))


def total_steps(config: Mapping[str, Any]) -> int:
    """Steps of the whole schedule, or `trainer.max_steps` if it is given."""
    from alitok.training.schedule import Schedule

    given = config["trainer"].get("max_steps")
    if isinstance(given, int) and given < 1:
        raise BadInput(f"trainer.max_steps must be at least 1, not {given}; without it the whole schedule is trained.")
    return given or Schedule(config["model"]["init_args"]["phases"]).total_steps


def artifact_folder(config: Mapping[str, Any]) -> Path:
    """The folder of a run's artifact."""
    trainer = _map(config.get("trainer"))
    export = _map(_map(trainer.get("callbacks")).get("artifact"))
    return Path(_map(export.get("init_args")).get("folder") or Path(str(trainer["default_root_dir"])) / "artifact")


def finished(config: Mapping[str, Any], total: int) -> bool:
    """Whether the run's artifact exists and has all steps."""
    return steps_done(config) >= total


def steps_done(config: Mapping[str, Any]) -> int:
    """Steps of the run's artifact; 0 if there is none."""
    card = read_settings(artifact_folder(config) / "card.json") or {}
    return card.get("steps") or 0


def quiet() -> None:
    """Silences advertisements, and warnings that do not apply here (e.g. about frozen parts)."""
    import logging
    import warnings

    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "(?s)LightningCLI's args parameter.*",
        ".*does not have many workers.*",
        ".*module.s. in eval mode at the start of training.*",
        ".*isinstance.treespec, LeafSpec.*",
        "FSDP2-wrapped module .* returned a view tensor.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def _lightning_cli(verb: str, config: Mapping[str, Any], total: int, module: Any, data: Any) -> None:
    from lightning import LightningDataModule, LightningModule
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

    from alitok.training.finish import Trainer
    from alitok.training.parallel import children_end_with_this

    trainer = dict(config["trainer"])
    for name in ("callbacks", "logger", "plugins"):
        if isinstance(trainer.get(name), Mapping):
            trainer[name] = list(trainer[name].values())
    checkpoints = {"class_path": "alitok.training.checkpoint.AtomicCheckpointIO"}
    trainer["plugins"] = [*trainer.get("plugins", []), checkpoints]
    trainer |= {"max_steps": total, "max_epochs": -1, "use_distributed_sampler": False}
    trainer["check_val_every_n_epoch"] = None  # an endless loader has one epoch, so validation counts steps

    def giving(value: Any, kind: type) -> type:
        """A class whose call gives the value: the CLI takes classes or functions, and the latter cost it a second."""
        return type("Ready", (kind,), {"__new__": lambda cls: value, "__init__": lambda self: None})

    options = {key: config[key] for key in ("seed_everything", "ckpt_path") if key in config}

    class CLI(LightningCLI):
        def instantiate_classes(self) -> None:
            """Turns errors of the trainer and its callbacks into BadInput."""
            try:
                super().instantiate_classes()
            except Exception as error:  # Lightning and jsonargparse raise many kinds
                raise _refusal(error) from error

    try:
        with children_end_with_this(module):
            CLI(
                # Passed as objects: their keys are already checked, and the CLI's parser would build the class blocks
                # inside, which the modules need as blocks (for the artifacts).
                giving(module, LightningModule),
                giving(data, LightningDataModule),
                trainer_class=Trainer,
                save_config_callback=None,
                args={"subcommand": verb, verb: {**options, "trainer": trainer}},
                parser_kwargs={"exit_on_error": False, verb: {"exit_on_error": False}},
            )
    except argparse.ArgumentError as error:
        raise BadInput(f"The trainer's configuration is not valid: {_deepest(str(error))}.") from error
    except MisconfigurationException as error:
        raise _refusal(error) from error
    except SIGTERMException:  # raised between two batches
        raise end_of_run() from None
    except SystemExit as error:  # how Lightning ends after Ctrl-C
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning had switched it off
        raise error.__context__ from None


def _refusal(error: Exception) -> BadInput:
    """An error of building the trainer as BadInput: the BadInput in its chain of causes if there is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BadInput):
            return cause
        cause = cause.__cause__ or cause.__context__
    return BadInput(f"The trainer's configuration is not valid: {' '.join(str(error).split()).rstrip('.')}.")


def _deepest(message: str) -> str:
    """The innermost message of jsonargparse's tree of messages."""
    lines = [line.strip(" -") for line in message.splitlines() if not line.lstrip().startswith("Given value")]
    keys = [number for number, line in enumerate(lines) if "Parser key" in line]
    return " ".join(lines[keys[-1] : keys[-1] + 2] if keys else lines[:2]).rstrip(".")


def _shallow(block: Mapping[str, Any]) -> Any:
    """Builds the object of a class block, but passes blocks in its arguments as blocks."""
    return import_class(block["class_path"])(**(block.get("init_args") or {}))
