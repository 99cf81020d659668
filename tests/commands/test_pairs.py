"""`alitok pairs`: what it writes, that it goes on, and what it refuses."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alitok.artifacts.folder import load_generator, load_tokenizer
from alitok.cli import main
from alitok.common.draw import Draw
from alitok.common.images import to_uint8
from alitok.data.sources import open_source
from alitok.data.token_cache import TokenCache
from alitok.data.token_shards import TokenShards
from alitok.ideas.post_training import MixedSampler, PairedDataModule
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


NAMES = ("circle", "square", "star")
DAMAGED = 3  # the first picture of the second class


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Nine pictures of three classes, one of them damaged."""
    for number in range(9):
        file = tmp_path / "pictures" / "train" / NAMES[number // 3] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * number, 90, 200 - 20 * number)).save(file)
    (tmp_path / "pictures" / "val" / "circle").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "pictures" / "val" / "circle" / "0.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("batch", ["1", "2", "50"])
def test_all_tokens_of_a_picture_that_cannot_be_read_are_drawn(
    artifacts: Path, tmp_path: Path, pictures: Path, batch: str, caplog: pytest.LogCaptureFixture
) -> None:
    more = ["--data", str(pictures), "--count", "9", "--batch", batch, "--sigma", "0.7"]
    main(command(artifacts, tmp_path / "whole", *more))
    file = pictures / "train" / NAMES[DAMAGED // 3] / f"{DAMAGED}.png"
    file.write_bytes(b"no picture")
    with caplog.at_level(logging.WARNING, "alitok"):
        main(command(artifacts, tmp_path / "pairs", *more))
    assert [str(file) in record.getMessage() for record in caplog.records] == [True]
    others = torch.arange(9) != DAMAGED
    whole, pairs = gathered(tmp_path / "whole"), gathered(tmp_path / "pairs")
    assert torch.equal(pairs[:, others], whole[:, others])
    generator = load_generator(artifacts / "generator")
    draw = Draw(generator.card["guidance"], generator.card["power"], seed=0)
    assert torch.equal(pairs[0, DAMAGED], Sampler(generator, draw).sample(torch.tensor([1]), [DAMAGED])[0])
    assert TokenCache(tmp_path / "pairs").labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]

    data = PairedDataModule(str(tmp_path / "pairs"), "direct", source=str(pictures), image_size=32, global_batch=9)
    data.setup("fit")
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, num_devices=1, global_step=0, training=True)
    taken = data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0)
    assert DAMAGED not in taken["index"]
    assert torch.equal(taken["tokens"], pairs[0, taken["index"]])


def test_more_pictures_than_allowed_that_cannot_be_read_end_it(
    artifacts: Path, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (3, 7):
        (pictures / "train" / NAMES[number // 3] / f"{number}.png").write_bytes(b"no picture")
    more = ["--data", str(pictures), "--count", "9", "--max-skipped"]
    for limit, name in (("0", "3.png"), ("1", "7.png")):
        with pytest.raises(SystemExit):
            main(command(artifacts, tmp_path / "pairs", *more, limit))
        said = capsys.readouterr().err
        assert "More images than --max-skipped allows cannot be read" in said
        assert name in said
    main(command(artifacts, tmp_path / "pairs", *more, "2"))
    assert len(TokenCache(tmp_path / "pairs")) == 9


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--max-skipped", "-1"], "--max-skipped must be at least 0, not -1"),
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
    with pytest.raises(SystemExit):
        main(command(artifacts, tmp_path / "pairs", "--draw", "gumbel"))
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
