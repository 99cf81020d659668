"""Every stack of YAML files that 0.1 shipped: what it composed to and what `describe --json` printed of it.

make.py calls it. It writes stacks.json and describe.json next to this file. `describe` takes five minutes of CPU time,
and a second start continues where the first one stopped.
"""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXPERIMENTS = Path("experiments")
FOLDERS = ("demo", "cifar10", "imagenet256", "release", "imagenet512")
MODULES = ("tokenizer-stage1", "tokenizer-stage2", "generator")
LADDER = (
    (),
    ("causal",),
    ("causal", "prefix"),
    ("causal", "prefix", "auxiliary"),
    ("causal", "prefix", "auxiliary", "two-stage"),
    ("causal-encoder",),
)
OVERLAYS = ("options/average", "options/compile", "options/wandb", "strategies/ddp", "strategies/fsdp")
OVERLAYS += ("debug/overfit", "debug/profile")

Stack = tuple[str, ...]


def bases() -> list[Stack]:
    """The whole configurations of each folder, alone."""
    return [(f"{folder}/{module}",) for folder in FOLDERS for module in MODULES]


def variants() -> list[Stack]:
    """Sizes, the laptop's small tokenizer, the rungs of the ablation and their generator."""
    sizes = [
        (f"{folder}/generator", f"{folder}/sizes/{size}")  # as 0.1 called them
        for folder in ("imagenet256", "imagenet512", "release")
        for size in ("177M", "318M", "662M")
    ]
    small = [("cifar10/tokenizer-stage1", "cifar10/small")]
    rungs = [("ablation/tokenizer", *(f"ablation/{name}" for name in names)) for names in LADDER]
    return [*small, *rungs, ("ablation/generator",), *sizes]


def ideas() -> Iterator[Stack]:
    """Each idea over each base that its first line names, with the overlays that the line puts between."""
    for path in sorted((EXPERIMENTS / "ideas").glob("*.yaml")):
        words = path.read_text("utf-8").splitlines()[0].removeprefix("# over:").split()
        names = [word.removesuffix(".yaml") for word in words]
        between = [name for name in names if name.startswith("ideas/")]
        for base in names:
            if base not in between:
                yield (base, *between, f"ideas/{path.stem}")


def overlays() -> list[Stack]:
    """Options, strategies and debugging over each whole configuration."""
    return [
        (*base, overlay)
        for overlay in OVERLAYS
        for base in [*bases(), ("ablation/tokenizer",), ("ablation/generator",)]
    ]


def key(stack: Stack) -> str:
    return " ".join(f"experiments/{name}.yaml" for name in stack)


def write(path: Path, content: dict[str, Any]) -> None:
    """JSON, an entry a line."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    path.write_text("{\n" + lines + "\n}\n", "utf-8")


def compose() -> None:
    """A whole configuration for each first file, and for a stack what it changes in that of its first file."""
    from kept_files import compose_run, leaves, overlaid

    whole: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    for stack in [*bases(), *variants(), *ideas(), *overlays()]:
        first, name = key(stack[:1]), key(stack)
        whole[first] = whole.get(first) or compose_run([first])
        if name == first:
            entries[name] = whole[first]
            continue
        config = compose_run(name.split())
        old, new = leaves(whole[first]), leaves(config)
        changes = {path: value for path, value in new.items() if path not in old or old[path] != value}
        changes |= dict.fromkeys(path for path in old if path not in new)
        assert overlaid(whole[first], changes) == config
        entries[name] = {"changes": changes}
    write(HERE / "stacks.json", entries)


def describe() -> None:
    from alitok.cli import run

    path = HERE / "describe.json"
    records = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    order = [*bases(), *variants(), *ideas()]
    order += [(f"imagenet256/{module}", "strategies/fsdp") for module in MODULES]
    order += [("imagenet256/tokenizer-stage1", "strategies/ddp")]
    for stack in order:
        if key(stack) in records:
            continue
        words = [word for file in key(stack).split() for word in ("-c", file)]
        shared = ["--trainer.devices", "8"] if stack[-1].startswith("strategies/") else []
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            run(["describe", *words, *shared, "--json", "--hardware", "H100"])
        records[key(stack)] = json.loads(printed.getvalue())
        write(path, records)
        print(key(stack), flush=True)
