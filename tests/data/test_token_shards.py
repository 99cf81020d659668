from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from alitok.common.errors import BadInput
from alitok.data.reading import Skip
from alitok.data.token_cache import TokenCache
from alitok.data.token_shards import TokenShards

JOB = {"digest": "d", "recipe": {"crop": "ten"}, "source": "s", "precision": "32"}
NAMES = ["a", "b"]


def shards(folder, total: int = 10, **job) -> TokenShards:
    return TokenShards(folder, {**JOB, **job}, total, codebook_size=4096, class_names=NAMES, images_per_shard=4)


def fill(cache: TokenShards, ids: np.ndarray, numbers: list[int]) -> None:
    for number in numbers:
        images = cache.images(number)
        cache.write(number, [image % 2 for image in images], list(ids[images.start : images.stop]), [])


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, (10, 10, 6))


def test_shards_in_any_order_become_one_cache(tmp_path, ids):
    first = shards(tmp_path / "cache")
    first.work.begin()
    assert [list(first.images(number)) for number in first.pending()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    fill(first, ids, [2, 0])
    again = shards(tmp_path / "cache")
    again.work.begin()
    assert again.pending() == [1]
    with pytest.raises(ValueError, match="1 shards are missing, the first is 1"):
        again.finish({"digest": "d", "recipe": {}})
    fill(again, ids, [1])
    again.finish({"digest": "d", "recipe": {"crop": "ten"}, "more": 1})
    cache = TokenCache(tmp_path / "cache")
    every = torch.arange(10).repeat_interleave(10), torch.arange(10).repeat(10)
    assert np.array_equal(cache.gather(*every).numpy().reshape(ids.shape), ids)
    assert cache.labels.tolist() == [0, 1] * 5
    assert (cache.digest, cache.metadata["more"], cache.metadata["skipped"]) == ("d", 1, [])
    assert cache.metadata["shape"] == [10, 6]
    rows = datasets.load_from_disk(str(tmp_path / "cache"))
    assert rows[5]["tokens"] == ids[5].tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]
    assert not (tmp_path / "cache" / "progress").exists()


def test_a_shard_holds_all_its_images_or_says_which_are_missing(tmp_path, ids):
    cache = shards(tmp_path / "cache")
    cache.work.begin()
    with pytest.raises(ValueError, match=r"Shard 0 has 3 \+ 0 of 4"):
        cache.write(0, [0, 1, 0], list(ids[:3]), [])
    with pytest.raises(ValueError, match="out of range"):
        cache.write(0, [0, 1, 0, 2], list(ids[:4]), [])
    with pytest.raises(ValueError, match="out of range"):
        cache.write(0, [0, 1, 0, 1], list(ids[:4] + 4000), [])
    assert cache.pending() == [0, 1, 2]
    cache.write(0, [0, 1, 0], list(ids[:3]), [Skip(3, "gone")])
    cache.write(2, [], [], [Skip(8, "gone"), Skip(9, "gone")])
    assert cache.pending() == [1]
    assert [skip.image for skip in cache.skipped()] == [3, 8, 9]


def test_a_cache_at_a_link_is_where_the_link_leads(ids, led_elsewhere):
    out, target = led_elsewhere
    cache = shards(out)
    cache.work.begin()
    assert cache.partial == target.with_name("target.partial")
    fill(cache, ids, [0, 1, 2])
    cache.finish({"digest": "d", "recipe": {}})
    assert len(TokenCache(target)) == 10
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    assert out.is_symlink() == (out != Path("."))


@pytest.mark.parametrize("damage", ["rows", "record", "no rows"])
def test_what_was_lost_is_made_again(tmp_path, ids, damage):
    cache = shards(tmp_path / "cache")
    cache.work.begin()
    fill(cache, ids, [0, 1])
    if damage == "no rows":
        cache.path(1).unlink()
    else:
        file = cache.path(1) if damage == "rows" else cache.progress / "00001.json"
        file.write_bytes(file.read_bytes()[:7])
    assert cache.pending() == [1, 2]


def test_another_job_is_named(tmp_path, ids):
    shards(tmp_path / "cache").work.begin()
    fill(shards(tmp_path / "cache"), ids, [0])
    shards(tmp_path / "cache").work.begin()
    assert shards(tmp_path / "cache").pending() == [1, 2]
    for key, what in [("digest", "tokenizer"), ("recipe", "crop recipe"), ("source", "data set")]:
        with pytest.raises(BadInput, match=rf"unfinished token cache with other settings \({what} .*, not \"other\"\)"):
            shards(tmp_path / "cache", **{key: "other"}).work.begin()
    with pytest.raises(BadInput, match="at least 1 image"):
        TokenShards(tmp_path, JOB, 1, codebook_size=4, class_names=NAMES, images_per_shard=0)
    (tmp_path / "cache.partial" / "progress" / "job.json").write_text("{")
    with pytest.raises(BadInput, match=r"is in the way: it is not an unfinished token cache\. Rename it"):
        shards(tmp_path / "cache").work.begin()


def test_ten_crops_of_imagenet_take_less_than_8_gb(tmp_path):
    cache = TokenShards(tmp_path / "cache", JOB, 256, codebook_size=4096, class_names=NAMES, images_per_shard=256)
    cache.work.begin()
    cache.write(0, [0] * 256, list(np.zeros((256, 10, 273), dtype=np.int64)), [])
    assert cache.path(0).stat().st_size / 256 * 1_281_167 < 8e9
