"""`alitok pairs`: what it writes, that it goes on, and what it refuses."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alitok.artifacts.folder import load_generator, load_tokenizer
from alitok.cli import main
from alitok.common.draw import Draw
from alitok.common.images import to_uint8
from alitok.data.sources import open_source
from alitok.data.token_cache import TokenCache
from alitok.data.token_shards import TokenShards
from alitok.ideas.post_training import MixedSampler
from alitok.sampling.generate import Sampler


def command(artifacts: Path, out: Path, *more: str) -> list[str]:
    words = ["pairs", "--generator", str(artifacts / "generator"), "--tokenizer", str(artifacts / "tokenizer")]
    return [*words, "--data", "shapes", "--count", "7", "--out", str(out), "--images-per-shard", "4", *more]


def gathered(folder: Path) -> torch.Tensor:
    """(2, images, N): the tokens as drawn, and as found again."""
    cache = TokenCache(folder)
    images = torch.arange(len(cache))
    return torch.stack([cache.gather(images, torch.full_like(images, view)) for view in range(2)])


@pytest.fixture(autouse=True)
def three_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small generator knows three classes."""
    from alitok.data import shapes

    monkeypatch.setattr(shapes, "SHAPES", {name: shapes.SHAPES[name] for name in ("circle", "square", "star")})


def test_both_forms_and_the_record(artifacts: Path, tmp_path: Path) -> None:
    main(command(artifacts, tmp_path / "pairs", "--batch", "3", "--sigma", "0.5", "--seed", "2"))
    drawn, again = gathered(tmp_path / "pairs")
    tokenizer, generator = load_tokenizer(artifacts / "tokenizer"), load_generator(artifacts / "generator")
    source = open_source("shapes", "train", size=32, count=7)
    images = torch.stack([torch.from_numpy(np.array(source[i][0])).permute(2, 0, 1) for i in range(7)]).float() / 255
    labels = torch.tensor([source[i][1] for i in range(7)])
    mixed = MixedSampler(Sampler(generator, Draw(3.0, 2.0, seed=2)), 0.5)
    expected = mixed.sample(tokenizer.encode(images), labels, range(7))
    assert torch.equal(drawn, expected)
    assert torch.equal(again, tokenizer.encode(to_uint8(tokenizer.decode(drawn)).float() / 255))
    cache = TokenCache(tmp_path / "pairs")
    assert cache.labels.tolist() == labels.tolist()
    assert cache.digest == tokenizer.card["digest"]
    assert (cache.recipe["sigma"], cache.recipe["guidance"], cache.recipe["schedule"]) == (0.5, 3.0, "power-cosine")


def test_it_goes_on_where_it_stopped_and_says_when_it_is_done(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(command(artifacts, tmp_path / "whole"))
    write = TokenShards.write

    def killed(self: TokenShards, shard: int, *rest: object) -> None:
        if shard == 1:
            raise KeyboardInterrupt
        write(self, shard, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TokenShards, "write", killed)
    with pytest.raises(SystemExit):
        main(command(artifacts, tmp_path / "parts"))
    assert not (tmp_path / "parts").exists()
    monkeypatch.setattr(TokenShards, "write", write)
    main(command(artifacts, tmp_path / "parts"))
    assert torch.equal(gathered(tmp_path / "parts"), gathered(tmp_path / "whole"))
    main(command(artifacts, tmp_path / "parts"))
    assert "7 pairs, all there already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--sigma", "1.5"], "sigma, must lie in 0..1"),
        (["--schedule", "cosin"], "No guidance schedule 'cosin'"),
        (["--tokenizer", "nowhere"], "nowhere is not an artifact"),
    ],
)
def test_refusals(
    artifacts: Path, tmp_path: Path, more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(command(artifacts, tmp_path / "pairs", *more))
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_other_settings_are_not_mixed_in(artifacts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(command(artifacts, tmp_path / "pairs"))
    with pytest.raises(SystemExit):
        main(command(artifacts, tmp_path / "pairs", "--sigma", "0.2"))
    assert "holds a token cache of another" in capsys.readouterr().err


def test_the_batch_is_agreed_on_before_processes_may_fail_alone(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alitok.common import distributed
    from alitok.sampling import sets as sample_set

    within: list[bool] = []
    block, agree = distributed.all_or_none, sample_set.common_batch

    @contextmanager
    def watched() -> Iterator[None]:
        within.append(True)
        with block():
            yield
        within.pop()

    def asked(*arguments: Any) -> int:
        assert not within
        calls.append(1)
        return agree(*arguments)

    calls: list[int] = []
    monkeypatch.setattr(distributed, "all_or_none", watched)
    monkeypatch.setattr(sample_set, "common_batch", asked)
    main(command(artifacts, tmp_path / "pairs"))
    assert calls == [1]
