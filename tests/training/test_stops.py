"""A run of several processes stops after one step in all of them, whichever gets SIGTERM, and goes on exactly."""

from pathlib import Path

import pytest
import yaml
from kills import SIGNAL, configuration, differing, newest_step, start
from tiny import token_cache

STEPS = 24
STRATEGY = {"ddp": "ddp", "fsdp": {"class_path": "alitok.training.parallel.FSDP2"}}


def fit(folder: Path, shared: Path, strategy: str, rank: int | None) -> int:
    """The exit status."""
    config = configuration("generator", folder, shared, STEPS)
    config["trainer"] |= {"devices": 2, "strategy": STRATEGY[strategy]}
    if rank is not None:
        config["trainer"]["callbacks"]["signal"] = {
            "class_path": "training.kills.Signal",
            "init_args": {"rank": rank},
        }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return start(file, folder / "log.txt").wait(timeout=120)


@pytest.mark.parametrize(("strategy", "rank"), [("ddp", 1), pytest.param("fsdp", 0, marks=pytest.mark.slow)])
def test_all_processes_stop_after_the_same_step(strategy: str, rank: int, tmp_path: Path) -> None:
    token_cache(tmp_path)
    assert fit(tmp_path / "whole", tmp_path, strategy, None) == 0
    log = tmp_path / "parts" / "log.txt"
    assert fit(tmp_path / "parts", tmp_path, strategy, rank) == 143, log.read_text()[-3000:]
    assert SIGNAL < newest_step(tmp_path / "parts", "generator") <= SIGNAL + 2
    assert fit(tmp_path / "parts", tmp_path, strategy, rank) == 0, log.read_text()[-3000:]
    assert differing("generator", tmp_path / "whole", tmp_path / "parts") == []
