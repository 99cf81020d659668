"""Compares the configuration of a checkpoint with the one that continues the run."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alitok.common.build import present
from alitok.common.errors import BadInput

# Keys, without `init_args`, that do not change what a run trains. Only dropout and PatchGAN's BatchNorm depend on
# micro-batches; the training module warns of dropout, because only it has the number of devices.
HARMLESS = (
    r"trainer\.(?!callbacks\.average).*",
    r"data\.(num_workers|micro_batch|val_count)",
    r"model\.(guidance|power|schedule|sampling_seed|activation_checkpointing)",
)
IGNORED = ("define", "ckpt_path")


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key (without `init_args`) -> (before, now), for the keys that differ; None for a missing value."""
    old, new = (dict(_leaves(present(config))) for config in (before, now))
    keys = [*old, *(key for key in new if key not in old)]
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def check_changes(before: Mapping[str, Any], now: Mapping[str, Any], allow: bool, checkpoint: str) -> list[str]:
    """Lines that announce the changes since the checkpoint was written.

    Args:
        allow: accept changes of what the run trains.

    Raises:
        BadInput: such a change, if `allow` is false; the message names every such key.
    """
    changes = compare(before, now)
    grave = grave_changes(changes)
    if grave and not allow:
        raise BadInput(
            f"This is not the run that {checkpoint} belongs to: {grave}."
            " Take that back, train in another folder (--define.run), or add --allow-changes."
        )
    return [f"continuing with a changed {_told(*item)}" for item in changes.items()]


def grave_changes(changes: Mapping[str, tuple[Any, Any]], more: Sequence[str] = ()) -> str:
    """Those results of `compare` that change what a run trains, and those of the keys `more`, as text."""
    harmless = {key for key in changes if key not in more and any(re.fullmatch(form, key) for form in HARMLESS)}
    grave = {key: pair for key, pair in changes.items() if key not in harmless}
    return "; ".join(_told(*item) for item in grave.items())


def _told(key: str, pair: tuple[Any, Any]) -> str:
    return f"{key}: {pair[0]} -> {pair[1]}"


def _leaves(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if not where and key in IGNORED:
            continue
        path = where if key == "init_args" else f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping):
            if key == "phases":
                yield f"{path} (order)", list(value)
            yield from _leaves(value, path)
        else:
            yield path, list(value) if isinstance(value, tuple) else value
