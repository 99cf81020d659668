"""The record of a planned run: its layout on devices, parameters, FLOPs, memory, hours."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from alitok.common.build import import_class, is_class_block
from alitok.common.errors import BadInput

if TYPE_CHECKING:
    from alitok.common.hardware import Hardware
    from alitok.profiling.cost import Cost, Layout

IMAGENET_IMAGES = 1_281_167
OPTIONS = ("trainable", "reference", "start_from", "codebook_lr", "class_dropout")  # of a training module
THIS_CPU = "this CPU"


def chosen(model: Mapping[str, Any]) -> dict[str, Any]:
    """Classes and options of a training beyond the paper's networks.

    Returns:
        "losses" by name, "bottleneck", "classes": every other class outside `alitok.models` by its key, such as heads,
        corruptions and orders; "options" of training that change what is learned.
    """
    arguments = model.get("init_args") or {}
    tokenizer = arguments.get("tokenizer") or {}  # a path in a generator's training
    bottleneck = None if isinstance(tokenizer, str) else (tokenizer.get("init_args") or {}).get("bottleneck")
    shown = ("tokenizer.bottleneck", *(f"losses.{name}" for name in arguments.get("losses") or {}))
    return {
        "losses": {name: _class_name(block) for name, block in (arguments.get("losses") or {}).items()},
        "bottleneck": None if bottleneck is None else _class_name(bottleneck),
        "classes": {key: name for key, name in _classes(arguments) if not key.startswith(shown)},
        "options": {key: arguments[key] for key in OPTIONS if arguments.get(key) is not None},
    }


def _classes(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(key without `init_args`, class) of every class block outside `alitok.models`."""
    if not isinstance(value, Mapping):
        return
    if is_class_block(value) and not str(value["class_path"]).startswith("alitok.models."):
        yield where, str(value["class_path"]).rpartition(".")[2]
    for key, item in value.items():
        yield from _classes(item, where if key == "init_args" else f"{where}.{key}".lstrip("."))


def _class_name(block: Mapping[str, Any]) -> str:
    """A class block as text, e.g. "TailDrop(least=4)"."""
    arguments = ", ".join(f"{key}={value}" for key, value in (block.get("init_args") or {}).items())
    return f"{str(block['class_path']).rpartition('.')[2]}({arguments})".removesuffix("()")


def layout_of(trainer: Mapping[str, Any], hardware: str | None = None) -> "Layout":
    """The layout that a trainer's settings give; "auto" is what Lightning would choose on this machine.

    Args:
        hardware: a name that decides between CPU and GPU, overriding the trainer's.

    Raises:
        BadInput: devices or a strategy that `describe` does not know, or one that a callback refuses.
    """
    import torch

    from alitok.profiling.cost import Layout

    accelerator = str(trainer.get("accelerator", "auto"))
    if hardware is not None:
        on_cpu = hardware == "cpu"
    else:
        on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available())
    devices = _devices(trainer.get("devices", "auto"), on_cpu) * int(trainer.get("num_nodes", 1))
    given = trainer.get("strategy", "auto")
    block: Mapping[str, Any] = given if isinstance(given, Mapping) else {"class_path": given}
    name = str(block["class_path"]).rpartition(".")[2].lower()
    device: Literal["cpu", "cuda"] = "cpu" if on_cpu else "cuda"
    if "fsdp" in name or "modelparallel" in name:
        from alitok.callbacks.average import SHARDED, WeightAverage

        callbacks = (trainer.get("callbacks") or {}).values()
        if any(issubclass(import_class(block["class_path"]), WeightAverage) for block in callbacks):
            raise BadInput(SHARDED)
        return Layout(device, devices, "fsdp", shards=devices)
    if "ddp" in name or (name == "auto" and devices > 1):
        view = bool((block.get("init_args") or {}).get("gradient_as_bucket_view", False))
        return Layout(device, devices, "ddp" if devices > 1 else "single", bucket_view=view)
    if name not in ("auto", "singledevicestrategy"):
        raise BadInput(f"describe knows the strategies ddp and fsdp (experiments/strategies), not {given!r}.")
    return Layout(device)


def _devices(value: Any, on_cpu: bool) -> int:
    """The number of devices per node that `trainer.devices` stands for."""
    import torch

    if value in ("auto", -1, "-1"):
        return 1 if on_cpu else max(1, torch.cuda.device_count())
    if isinstance(value, list):
        return len(value)
    if isinstance(value, str) and "," in value:
        return len([item for item in value.split(",") if item.strip()])
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if count < 1:
        raise BadInput(f"trainer.devices must be a number of devices, a list or auto, not {value!r}.")
    return count


def images_of(data: Mapping[str, Any]) -> int:
    """Number of training images, if the configuration gives it; else ImageNet's."""
    from alitok.data.shapes import DEFAULT_COUNTS

    drawn = DEFAULT_COUNTS["train"] if data.get("source", "shapes") == "shapes" and "cache" not in data else None
    return data.get("count") or drawn or IMAGENET_IMAGES


def hardware_of(name: str | None) -> "list[Hardware]":
    from alitok.common.hardware import GPUS, measure_cpu

    if name is None:
        return [*GPUS.values(), measure_cpu()]
    return [measure_cpu() if name == "cpu" else GPUS[name]]


def as_record(result: "Cost", hardware: "list[Hardware]", utilization: float, images: int) -> dict[str, Any]:
    """The record in its JSON form."""
    peak, layout = result.peak, result.layout
    parts: dict[str, float] = defaultdict(float)
    for (part, _), count in result.flops.items():
        parts[part] += count
    return {
        "model": result.model,
        "parameters": {"total": result.total, "trainable": result.trainable, **result.parts},
        "parameters_beside": result.beside,
        "tokens": result.tokens,
        "codebook_size": result.codebook_size,
        "sub_codes": result.sub_codes,
        "bits_per_token": result.bits_per_token,
        "bits_per_picture": result.bits_per_token * result.tokens,
        "flops_per_step": round(sum(parts.values())),
        "flops_by_part": {part: round(count) for part, count in parts.items()},
        "memory_bytes": peak.memory_bytes,
        "memory_by_kind": peak.memory,
        "memory_phase": peak.name,
        "device": layout.device,
        "devices": layout.devices,
        "strategy": layout.strategy,
        "precision": result.precision,
        "global_batch": result.global_batch,
        "micro_batch": result.micro_batch,
        "accumulation": result.accumulation,
        "steps": result.steps,
        "images_seen": result.images_seen,
        "dataset_images": images,
        "epochs": result.images_seen / images,
        "utilisation": utilization,
        "hours": {
            # processes on this machine's CPU share it
            item.name: result.steps
            * item.seconds(result.flops, utilization)
            / (1 if item.name == THIS_CPU else layout.devices)
            / 3600
            for item in hardware
        },
        "fits": {item.name: peak.memory_bytes < item.memory for item in hardware if _same_kind(item, layout)},
        "turns": [
            {
                "phases": turn.name,
                "steps": turn.steps,
                "trainable": turn.trainable,
                "flops": round(sum(turn.flops.values())),
                "memory_bytes": turn.memory_bytes,
            }
            for turn in result.turns
        ],
    }


def _same_kind(item: "Hardware", layout: "Layout") -> bool:
    return (item.name == THIS_CPU) == (layout.device == "cpu")
