"""Makes everything in this folder that 0.1 made. It was run once, with the source of 0.1 (commit 9d3e890):

    git worktree add /tmp/alitok-0.1 9d3e890
    cd /tmp/alitok-0.1
    OMP_NUM_THREADS=1 PYTHONPATH=src:tests python .../tests/kept/make.py stacks | describe | runs | losses

`stacks` and `describe` read the YAML files of that commit, `runs` trains and draws in the folder `kept` there, `losses`
needs what `runs` made. The numbers are the same in every run on one machine. Do not run it with a later source: the
tests next to it compare that source with these files.
"""

import os
import sys
from pathlib import Path

import make_data
import make_runs
import make_stacks
import torch

TOKENIZERS = ("fsq", "lfq", "wetok", "titok", "nested-dropout", "tail-drop", "perturbation", "causal-encoder")
OTHERS = ("stage1-random-anchor", "stage1-average", "stage2", "stage2-average")
GENERATORS = ("generator", "generator-average", "generator-dropout", "softcfg")
GENERATORS += ("fsq-generator", "lfq-generator", "wetok-generator", "latents-generator")


def enter() -> None:
    """The folder in which everything is made; experiments/ is seen from there too."""
    folder = Path("kept")
    folder.mkdir(exist_ok=True)
    if not (folder / "experiments").exists():
        (folder / "experiments").symlink_to(Path("experiments").resolve())
    os.chdir(folder)


def everything() -> None:
    make_runs.runs("stage1", *OTHERS, *TOKENIZERS)
    caches = [name for name in make_data.COMMANDS if name.startswith("tokens")]
    for name in caches:
        make_data.make(name)
    make_runs.runs(*GENERATORS)
    make_data.make("pairs")
    make_runs.runs("post-training")
    for name in make_data.COMMANDS:
        if name not in (*caches, "pairs"):
            make_data.make(name)
    make_runs.fsdp("stage1")
    make_runs.fsdp("generator")


if __name__ == "__main__":
    torch.set_num_threads(1)
    what = sys.argv[1]
    if what in ("stacks", "describe"):
        {"stacks": make_stacks.compose, "describe": make_stacks.describe}[what]()
    else:
        enter()
        {"runs": everything, "losses": make_runs.losses}[what]()
