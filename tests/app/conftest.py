"""The small artifacts, opened."""

from pathlib import Path

import pytest
import torch

from alitok.app.opened import Opened, open_models


@pytest.fixture(scope="session")
def opened(artifacts: Path) -> Opened:
    names = [str(artifacts / name) for name in ("tokenizer", "stranger")]
    return open_models([str(artifacts / "generator")], names, torch.device("cpu"))
