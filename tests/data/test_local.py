"""Local data asks nothing of a network."""

import shutil
import socket
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from made_sources import parquet, values
from tiny import token_cache

from alitok.data.sources import open_source
from alitok.data.token_cache import TokenCache


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Names that were looked up; `datasets` takes itself to be online."""
    names: list[Any] = []

    def look_up(host: Any, *_: Any, **__: Any) -> Any:
        names.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    return names


def test_a_folder_of_tables(tmp_path: Path, asked: list[Any]) -> None:
    parquet(tmp_path / "train.parquet", 0, 5, label=pa.array([0, 1, 0, 1, 0]))
    parquet(tmp_path / "val.parquet", 5, 2, label=pa.array([0, 1]))
    assert values(open_source(str(tmp_path))) == [0, 1, 2, 3, 4]
    assert not asked
    assert datasets.config.HF_UPDATE_DOWNLOAD_COUNTS  # as it was


def test_a_token_cache_of_ours_and_one_from_elsewhere(tmp_path: Path, asked: list[Any]) -> None:
    cache = token_cache(tmp_path)
    (tmp_path / "other").mkdir()
    datasets.load_from_disk(str(cache)).to_parquet(str(tmp_path / "other" / "train.parquet"))
    shutil.copy(cache / "alitok.json", tmp_path / "other")
    assert len(TokenCache(cache)) == len(TokenCache(tmp_path / "other")) == 40
    assert not asked
