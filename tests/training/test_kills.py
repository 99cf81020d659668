"""`kill -9` at random moments: the run goes on to the same weights, to the last bit."""

from pathlib import Path

import pytest
from kills import FOLDER, compare, prepare


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    prepare(folder)
    return folder


@pytest.mark.slow
def test_two_kills_in_the_gan_phase(shared: Path) -> None:
    places, different = compare("tokenizer-stage1", shared, steps=200, kills=2)
    assert places[0] < places[1] <= 200
    assert different == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDER)
def test_ten_kills(name: str, tmp_path: Path) -> None:
    prepare(tmp_path)
    places, different = compare(name, tmp_path, steps=1500, kills=10)
    assert len(set(places)) == 10
    assert different == []
