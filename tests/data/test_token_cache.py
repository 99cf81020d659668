import json
import pickle
import tracemalloc

import datasets
import numpy as np
import pytest
import torch

from alitok.common.errors import BadInput
from alitok.data.token_cache import TokenCache
from alitok.data.token_shards import write_token_cache

NAMES = ["a cat", "élan", "c"]


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    datasets.disable_progress_bars()


def random_ids(images: int, shape: tuple[int, ...], codes: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, codes, (images, *shape))


def write(folder, ids: np.ndarray, codes: int, **changes) -> None:
    options = {
        "codebook_size": codes,
        "digest": "d1",
        "class_names": NAMES,
        "recipe": {"crop": "ten", "resize": 35, "size": 32},
        "images_per_shard": 4,
    }
    write_token_cache(folder, ((i % 3, row) for i, row in enumerate(ids)), **{**options, **changes})


@pytest.mark.parametrize(
    ("codes", "kind", "shape"),
    [(256, "uint8", (2, 5)), (4096, "uint16", (10, 7)), (70_000, "uint32", (1, 3)), (16, "uint8", (2, 5, 3))],
)
def test_round_trip(tmp_path, codes, kind, shape):
    ids = random_ids(11, shape, codes)
    write(tmp_path / "cache", ids, codes)
    cache = TokenCache(tmp_path / "cache")
    assert (len(cache), cache.views, cache.num_tokens) == (11, *shape[:2])
    assert cache.sub_codes == (shape[2] if len(shape) == 3 else 1)
    assert cache.labels.tolist() == [i % 3 for i in range(11)]
    assert cache.labels.dtype == torch.int64
    assert (cache.digest, cache.codebook_size, cache.class_names) == ("d1", codes, NAMES)
    assert cache.recipe["resize"] == 35
    indices = torch.tensor([10, 0, 3, 4, 3])
    views = torch.tensor([0, shape[0] - 1, 0, 0, shape[0] - 1])
    gathered = cache.gather(indices, views)
    assert gathered.dtype == torch.int64
    assert np.array_equal(gathered.numpy(), ids[indices.numpy(), views.numpy()])

    rows = datasets.load_from_disk(str(tmp_path / "cache"))
    assert rows[7]["tokens"] == ids[7].tolist()
    assert rows[7]["label"] == 1
    assert rows.features["label"].dtype == "int64"
    assert kind in str(rows.features["tokens"])


def test_readers_copy_nothing_and_survive_pickling(tmp_path):
    ids = random_ids(400, (10, 200), 256)
    write(tmp_path / "cache", ids, 256, images_per_shard=400)
    TokenCache(tmp_path / "cache")
    tracemalloc.start()
    cache = TokenCache(tmp_path / "cache")
    cache.gather(torch.arange(8), torch.zeros(8, dtype=torch.int64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < ids.size / 2  # bytes; a copy would need ids.size
    assert len(pickle.dumps(cache)) < 1000
    assert pickle.loads(pickle.dumps(cache)).gather(torch.tensor([5]), torch.tensor([1])).shape == (1, 200)


def test_rows_that_do_not_belong(tmp_path):
    good = np.zeros((2, 3), dtype=np.int64)
    options = {"codebook_size": 8, "digest": "d", "class_names": NAMES, "recipe": {}}
    for rows in ([(0, good), (0, good[:, :2])], [(0, good), (3, good)], [(0, good), (0, good + 8)], [(0, good - 1)]):
        with pytest.raises(ValueError, match=r"shape|out of range"):
            write_token_cache(tmp_path / "cache", iter(rows), **options)


@pytest.mark.parametrize("form", ["dataset", "splits", "parquet", "fixed"])
def test_a_foreign_cache_is_accepted_with_a_warning(tmp_path, form):
    ids = random_ids(9, (4, 6), 4096)
    rows = {"label": [i % 4 for i in range(9)], "tokens": ids.tolist()}
    features = None
    if form == "fixed":
        pair = datasets.List(datasets.List(datasets.Value("int32"), length=6), length=4)
        features = datasets.Features({"label": datasets.ClassLabel(names=list("wxyz")), "tokens": pair})
    foreign = datasets.Dataset.from_dict(rows, features=features)
    folder = tmp_path / "foreign"
    if form == "parquet":
        foreign.to_parquet(folder / "data" / "train-0.parquet")
        (folder / "data" / "._train-0.parquet").write_bytes(b"Mac OS X")
    else:
        saved = datasets.DatasetDict({"train": foreign}) if form == "splits" else foreign
        saved.save_to_disk(str(folder))
    with pytest.warns(UserWarning, match="which tokenizer made it"):
        cache = TokenCache(folder)
    assert cache.digest is None
    assert cache.codebook_size is None
    assert cache.class_names == (list("wxyz") if form == "fixed" else ["0", "1", "2", "3"])
    views = torch.arange(9) % 4
    assert np.array_equal(cache.gather(torch.arange(9), views).numpy(), ids[np.arange(9), views.numpy()])


def test_folders_that_are_no_cache(tmp_path):
    with pytest.raises(BadInput, match="CACHE="):
        TokenCache(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no readable token cache"):
        TokenCache(tmp_path / "empty")

    def saved(name: str, **columns: list) -> str:
        datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / name))
        return str(tmp_path / name)

    with pytest.raises(BadInput, match="no column tokens"):
        TokenCache(saved("columns", label=[0]))
    with pytest.raises(BadInput, match="different lengths"):
        TokenCache(saved("ragged", label=[0, 1], tokens=[[[1, 2]], [[1]]]))
    with pytest.raises(BadInput, match="different lengths"):
        TokenCache(saved("views", label=[0, 1], tokens=[[[1, 2]], [[1, 2], [3, 4]]]))
    with pytest.raises(BadInput, match="views x tokens"):
        TokenCache(saved("flat", label=[0, 1], tokens=[[1, 2], [3, 4]]))
    with pytest.raises(BadInput, match="not integers"):
        TokenCache(saved("words", label=[0], tokens=[[["a"]]]))
    with pytest.raises(BadInput, match="whole number"):
        TokenCache(saved("labels", label=["x"], tokens=[[[1]]]))
    with pytest.raises(BadInput, match="empty"):
        TokenCache(saved("none", label=[0], tokens=[[[]]]))


def test_damaged_caches(tmp_path):
    write(tmp_path / "cache", random_ids(11, (2, 5), 256), 256)
    metadata = tmp_path / "cache" / "alitok.json"
    text = metadata.read_text()

    metadata.write_text(json.dumps({**json.loads(text), "codebook_size": 10}))
    cache = TokenCache(tmp_path / "cache")
    with pytest.raises(BadInput, match="codebook of 10"):
        cache.gather(torch.arange(11), torch.zeros(11, dtype=torch.int64))
    with pytest.raises(IndexError):
        cache.gather(torch.tensor([11]), torch.tensor([0]))

    metadata.write_text(json.dumps({**json.loads(text), "class_names": ["only"]}))
    with pytest.raises(BadInput, match="outside its 1 classes"):
        TokenCache(tmp_path / "cache")
    metadata.write_text("{")
    with pytest.raises(BadInput, match="damaged"):
        TokenCache(tmp_path / "cache")
    metadata.write_text(text)
    data = tmp_path / "cache" / "data-00000-of-00003.arrow"
    data.write_bytes(data.read_bytes()[:200])
    with pytest.raises(BadInput, match="no readable token cache") as caught:
        TokenCache(tmp_path / "cache")
    assert "\n" not in str(caught.value)
