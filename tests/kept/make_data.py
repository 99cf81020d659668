"""Token caches, pairs, sample sets, a classifier and records of 0.1, finished and unfinished.

make.py calls it. It writes data.json and `files/`; all paths are relative to the folder that a command runs in.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kept_files import FILES, alitok_run, lay_out
from make_runs import add, needs

SHAPES = ["--data", "shapes", "--count", "16", "--device", "cpu"]
PAIR = ["--generator", "artifacts/generator", "--tokenizer", "artifacts/stage2"]
SHARDS = ["--images-per-shard", "4"]
DRAW = ["--device", "cpu", "--batch", "4"]
MEASURE = ["--extractor", "classifier", "--device", "cpu"]


def tokenize(tokenizer: str, out: str) -> list[str]:
    return ["tokenize", "--tokenizer", f"artifacts/{tokenizer}", *SHAPES, *SHARDS, "--out", out]


def sample(generator: str, tokenizer: str, *words: str) -> list[str]:
    pair = ["--generator", f"artifacts/{generator}", "--tokenizer", f"artifacts/{tokenizer}"]
    return ["sample", *pair, *DRAW, *words]


# Output -> the command.
COMMANDS: dict[str, list[str]] = {
    "tokens": tokenize("stage1", "tokens"),
    **{f"tokens-{name}": tokenize(name, f"tokens-{name}") for name in ("fsq", "lfq", "wetok", "tail-drop")},
    "pairs": ["pairs", *PAIR, *SHAPES, *SHARDS, "--batch", "4", "--sigma", "0.5", "--out", "pairs"],
    "samples.npz": sample("generator", "stage2", "--count", "12", "--out", "samples.npz"),
    "samples": sample("generator", "stage2", "--count", "12", "--out", "samples"),
    "samples-softcfg.npz": sample("softcfg", "stage2", "--count", "8", "--out", "samples-softcfg.npz"),
    "samples-wetok.npz": sample(
        "wetok-generator",
        "wetok",
        "--classes",
        "0,2",
        "--per-class",
        "2",
        "--guidance",
        "2",
        "--out",
        "samples-wetok.npz",
    ),
    "samples-tail-drop.npz": sample(
        "latents-generator", "tail-drop", "--count", "4", "--keep", "5", "--seed", "7", "--out", "samples-tail-drop.npz"
    ),
    "classifier": [
        *("train-classifier", "--data", "shapes", "--size", "16", "--count", "100", "--steps", "40", "--width", "4"),
        *("--device", "cpu", "--out", "classifier"),
    ],
    "statistics.npz": [
        *("evaluate", "shapes", "--split", "train", "--size", "16", "--count", "40", *MEASURE),
        *("--save-statistics", "statistics.npz", "--json", "statistics-record.json"),
    ],
    "gfid.json": ["evaluate", "samples.npz", "--reference", "statistics.npz", *MEASURE, "--json", "gfid.json"],
    "gfid-folder.json": ["evaluate", "samples", "--reference", "samples.npz", *MEASURE, "--json", "gfid-folder.json"],
    "rfid.json": [
        *(
            "evaluate",
            "--reconstruction",
            "--tokenizer",
            "artifacts/stage1",
            "--data",
            "shapes",
            "--count",
            "24",
            "--pfid",
        ),
        *(*MEASURE, "--json", "rfid.json"),
    ],
}
BESIDE = {"samples.npz": ["samples.json"], "statistics.npz": ["statistics-record.json"]}
BESIDE |= {f"samples-{name}.npz": [f"samples-{name}.json"] for name in ("softcfg", "wetok", "tail-drop")}
READS = {"gfid.json": ["samples.npz", "samples.json", "statistics.npz", "classifier"], "rfid.json": ["classifier"]}
READS |= {
    "gfid-folder.json": ["samples", "samples.npz", "samples.json", "classifier"],
    "statistics.npz": ["classifier"],
}
# Output -> where a killed command leaves what it has.
PARTIAL = {"tokens": "tokens.partial", "tokens-wetok": "tokens-wetok.partial", "pairs": "pairs.partial"}
PARTIAL |= {"samples": ".samples.partial", "samples.npz": ".samples.npz.partial"}


@contextmanager
def killed_after(writes: int) -> Iterator[None]:
    """Lets the command write so many shards, then ends it as Ctrl-C does."""
    from alitok.data.token_shards import TokenShards
    from alitok.sampling.sets import SampleSet

    before = {kind: kind.write for kind in (TokenShards, SampleSet)}
    done = 0

    def limited(kind: Any) -> Any:
        def write(self: Any, *arguments: Any) -> None:
            nonlocal done
            if done == writes:
                raise KeyboardInterrupt
            before[kind](self, *arguments)
            done += 1

        return write

    for kind in before:
        kind.write = limited(kind)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for kind, write in before.items():
            kind.write = write


def place(name: str, target: Path) -> None:
    """Takes an output of this folder into `files/`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if Path(name).is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(name, target)
    else:
        shutil.copyfile(name, target)


def remove(name: str) -> None:
    if Path(name).is_dir():
        shutil.rmtree(name)
    Path(name).unlink(missing_ok=True)


def make(name: str) -> None:
    words = COMMANDS[name]
    reads = [*needs(words), *READS.get(name, [])]
    reads = [item for item in dict.fromkeys(reads) if item not in (name, "tokens" if name != "tokens" else "")]
    lay_out(Path(), *reads)
    entry: dict[str, Any] = {"words": words, "needs": reads, "makes": [name, *BESIDE.get(name, [])]}
    for made in entry["makes"]:
        remove(made)
    if name in PARTIAL:
        remove(PARTIAL[name])
        with killed_after(2):
            alitok_run(words)
        place(PARTIAL[name], FILES / "unfinished" / PARTIAL[name].removeprefix("."))
        entry["partial"] = PARTIAL[name]
        remove(PARTIAL[name])
    alitok_run(words)
    for made in entry["makes"]:
        place(made, FILES / made)
    add("data.json", name, entry)
