import shutil
from itertools import chain, islice
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

from alitok.common.errors import BadInput
from alitok.data.batches import TrainOrder, ValidationOrder
from alitok.data.datamodule import ImageNetDataModule
from alitok.data.pictures import to_tensor
from alitok.data.shapes import Shapes
from alitok.data.token_shards import write_token_cache

SMALL = {"image_size": 16, "global_batch": 4, "count": 10, "val_count": 7}


def module(rank: int = 0, world: int = 1, step: int = 0, **options) -> ImageNetDataModule:
    data = ImageNetDataModule(**{**SMALL, **options})
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world, global_step=step, num_devices=1)
    data.setup("fit")
    return data


def train_batches(data: ImageNetDataModule, number: int) -> list[dict[str, torch.Tensor]]:
    return list(islice(data.train_dataloader(), number))


def joined(batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture
def cache(tmp_path) -> str:
    ids = np.random.default_rng(0).integers(0, 50, (20, 10, 6))
    rows = ((i % 2, row) for i, row in enumerate(ids))
    names = ["über", "b"]
    write_token_cache(tmp_path / "c", rows, codebook_size=50, digest="d", class_names=names, recipe={})
    return str(tmp_path / "c")


def test_every_epoch_has_each_image_once_in_an_order_of_its_own():
    order = TrainOrder(10, 4, seed=0, rank=0, world_size=1, start=lambda: 0)
    indices = torch.cat([slots.indices for slots in islice(order, 10)]).reshape(4, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in indices)
    assert len({tuple(epoch.tolist()) for epoch in indices}) == 4


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_parts_of_a_batch_are_the_batch(tokens, rank, cache):
    options = {"global_batch": 14, **({"cache": cache} if tokens else {})}
    whole = train_batches(module(rank, 2, step=2, **options), 3)
    for most, sizes in ((3, [3, 3, 1]), (7, [7]), (99, [7])):
        data = module(rank, 2, step=2, micro_batch=most, **options)
        assert all(map(same, train_batches(data, 3), whole))
        assert [len(part.indices) for part in islice(data.loaders["train"].loader.sampler, len(sizes))] == sizes


def test_parts_that_several_processes_make_are_in_order():
    whole = train_batches(module(global_batch=8), 3)
    data = module(global_batch=8, micro_batch=3, num_workers=2)
    assert all(map(same, train_batches(data, 3), whole))


def test_loader_processes_need_shared_memory(monkeypatch):
    usage = SimpleNamespace(total=2**26, used=0, free=2**20)
    monkeypatch.setattr("alitok.data.batches.shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr("alitok.data.batches.Path.is_dir", lambda _: True)
    data = module(global_batch=1024, num_workers=4)
    data.trainer.num_devices = 2
    with pytest.raises(BadInput, match=r"8 loader processes need 12 MiB"):  # two processes share the node's memory
        data.train_dataloader()
    data.trainer = None
    with pytest.raises(BadInput, match=r"4 loader processes need 6 MiB of shared memory and /dev/shm has 1: start"):
        data.train_dataloader()
    data.micro_batch = 128
    data.train_dataloader()
    data.micro_batch, data.num_workers = None, 0
    data.train_dataloader()


def test_a_batch_may_be_larger_than_the_data_set():
    order = TrainOrder(3, 8, seed=0, rank=0, world_size=1, start=lambda: 0)
    indices = torch.cat([slots.indices for slots in islice(order, 3)])
    assert torch.bincount(indices).tolist() == [8, 8, 8]


@pytest.mark.parametrize("tokens", [False, True])
def test_batches_do_not_depend_on_the_number_of_devices(tokens, cache):
    options = {"cache": cache} if tokens else {}
    whole = train_batches(module(**options), 6)
    ranks = [train_batches(module(rank, 2, **options), 6) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert same(joined([ranks[0][step], ranks[1][step]]), batch)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumption_goes_on_with_the_next_batch(tokens, workers, cache):
    options = {"num_workers": workers, **({"cache": cache} if tokens else {})}
    whole = train_batches(module(**options), 7)
    assert all(map(same, train_batches(module(step=3, **options), 4), whole[3:]))
    data = module(**options)
    data.start_step = 5
    assert all(map(same, train_batches(data, 2), whole[5:]))


def test_loader_processes_change_nothing_and_are_kept():
    alone, helped = module(), module(num_workers=2)
    assert all(map(same, train_batches(alone, 6), train_batches(helped, 6)))
    loader = helped.train_dataloader()
    first = list(islice(loader, 2))
    processes = [worker.pid for worker in loader.loader._iterator._workers]
    helped.trainer.global_step = 2
    second = list(islice(loader, 2))
    assert [worker.pid for worker in loader.loader._iterator._workers] == processes
    assert all(map(same, first + second, train_batches(alone, 4)))


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    train_batches(module(), 3)
    list(module().val_dataloader())
    assert torch.equal(torch.rand(3), expected)


def test_image_batches():
    data = module(seed=1)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["image"].dtype == torch.uint8
    assert batch["position"].tolist() == [0, 1, 2, 3]
    assert all(batch[key].dtype == torch.int64 for key in ("label", "index", "position"))
    assert torch.equal(batch["label"], batch["index"] % 10)
    converted = data.on_after_batch_transfer(batch, 0)
    assert converted["image"].dtype == torch.float32
    assert torch.equal(converted["image"], batch["image"] / 255)
    assert data.class_names == Shapes().class_names
    assert data.num_classes == 10
    assert "10 drawn shapes" in data.description


def test_the_seed_changes_order_and_crops_but_not_the_images():
    options = {"augment": False, "flip": False}
    plain, other = joined(train_batches(module(**options), 5)), joined(train_batches(module(seed=9, **options), 5))
    assert not torch.equal(plain["index"], other["index"])
    pictures = Shapes("train", 16, count=10)
    for batch in (plain, other):
        for image, index in zip(batch["image"], batch["index"], strict=True):
            assert torch.equal(image, to_tensor(pictures[int(index)][0]))
    mirrored = joined(train_batches(module(augment=False), 5))
    assert torch.equal(mirrored["index"], plain["index"])
    turned = (mirrored["image"] == plain["image"].flip(-1)).flatten(1).all(1)
    assert 4 <= turned.sum() <= 16


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_has_each_image_once_over_the_ranks(world):
    loaders = [module(rank, world, global_batch=6, micro_batch=2).val_dataloader() for rank in range(world)]
    shares = [list(loader) for loader in loaders]
    assert {len(loader) for loader in loaders} == {len(share) for share in shares}
    indices = [joined(share)["index"].tolist() for share in shares]
    assert sorted(chain.from_iterable(indices)) == list(range(7))
    assert max(map(len, indices)) - min(map(len, indices)) <= 1
    again = list(module(0, world, global_batch=6, micro_batch=2, seed=5).val_dataloader())
    assert all(map(same, again, shares[0]))


@pytest.mark.parametrize(("total", "batch", "world"), [(3, 1, 2), (2, 5, 2), (9, 4, 2), (50, 7, 4), (5, 1, 1)])
def test_no_rank_is_left_without_a_batch(total, batch, world):
    orders = [list(ValidationOrder(total, batch, rank, world)) for rank in range(world)]
    assert len({len(order) for order in orders}) == 1
    assert min(len(slots.indices) for order in orders for slots in order) >= 1
    with pytest.raises(BadInput, match="fewer than"):
        ValidationOrder(1, batch, 0, 2)


def test_token_batches(cache):
    data = module(cache=cache, count=None, val_count=None, val_fraction=0.2)
    batch = next(iter(data.train_dataloader()))
    assert batch["tokens"].shape == (4, 6)
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert torch.equal(batch["label"], batch["index"] % 2)
    trained = set(joined(train_batches(data, 8))["index"].tolist())
    validated = joined(list(data.val_dataloader()))
    assert len(trained) == 16
    assert sorted([*trained, *validated["index"].tolist()]) == list(range(20))
    middle = data.token_cache.gather(validated["index"], torch.full((4,), 4))
    assert torch.equal(validated["tokens"], middle)
    assert data.class_names == ["über", "b"]
    assert "16 of 20 images in token cache" in data.description


def test_all_views_of_a_cache_are_used(cache):
    data = module(cache=cache, val_fraction=0, count=1)
    assert data.val_dataloader() == []
    seen = joined(train_batches(data, 25))["tokens"]
    index = joined(train_batches(data, 1))["index"][0]
    views = data.token_cache.gather(index.expand(10), torch.arange(10))
    assert {tuple(row) for row in seen.tolist()} == {tuple(row) for row in views.tolist()}


def test_without_augmentation_only_the_evaluations_view_is_used(cache):
    data = module(cache=cache, val_fraction=0, count=1, augment=False)
    seen = joined(train_batches(data, 25))
    middle = data.token_cache.gather(seen["index"], torch.full_like(seen["index"], 4))
    assert torch.equal(seen["tokens"], middle)


def test_validation_cache_must_come_from_the_same_tokenizer(cache, tmp_path):
    rows = [(0, np.zeros((1, 6), dtype=np.int64))]
    options = {"codebook_size": 50, "class_names": ["über", "b"], "recipe": {}}
    write_token_cache(tmp_path / "same", rows, digest="d", **options)
    write_token_cache(tmp_path / "other", rows, digest="e", **options)
    data = module(cache=cache, val_cache=str(tmp_path / "same"), count=None)
    assert len(data.splits["train"].chosen) == 20
    assert next(iter(data.val_dataloader()))["tokens"].tolist() == [[0] * 6]
    with pytest.raises(BadInput, match="differ in tokenizer"):
        module(cache=cache, val_cache=str(tmp_path / "other"))


def test_bad_input_comes_early(tmp_path):
    with pytest.raises(BadInput, match="does not divide by 3"):
        module(world=3).train_dataloader()
    for name in ("global_batch", "count", "val_count"):
        with pytest.raises(BadInput, match=f"{name} must be at least 1, not 0"):
            ImageNetDataModule(**{name: 0})
    with pytest.raises(BadInput, match="DATA="):
        module(source=str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="CACHE="):
        module(cache=str(tmp_path / "nowhere"))


@pytest.fixture
def folder(tmp_path):
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (20, 24), (i, 0, 0)).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_one_sentence_whatever_the_loader(folder, workers):
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"nothing")
    data = module(source=str(folder), num_workers=workers)
    with pytest.raises(BadInput, match=r"Cannot read the image .*png") as caught:
        train_batches(data, 1)
    assert "\n" not in str(caught.value)


def test_without_validation(folder):
    data = module(source=str(folder), val_fraction=0)
    assert data.val_dataloader() == []
    with pytest.raises(BadInput, match="no validation split"):
        ImageNetDataModule(source=str(folder), val_fraction=0).setup("validate")
    held = module(source=str(folder), val_fraction=0.25, val_count=None)
    assert "held out" in held.description
    assert sum(len(batch["index"]) for batch in held.val_dataloader()) == 2


def test_a_named_split_is_read_whole_and_nothing_is_held_out_for_it(folder):
    for name in ("train", "extra"):
        shutil.copytree(folder, folder / name, ignore=lambda *_: ["train", "extra"])
    options = {"source": str(folder), "count": None, "val_count": None, "val_fraction": 0.25}
    for name in ("train", "extra"):
        data = module(**options, train_split=name)
        assert len(data.splits["train"].source) == 8
        assert data.val_dataloader() == []
        (note,) = [str(note) for note in data.found.notes if note.what == "validation"]
        assert note.endswith(f"and train_split {name} is read whole; val_split names one")
        with pytest.raises(BadInput, match=f"train_split {name} is read whole; name a split .* with val_split"):
            ImageNetDataModule(**options, train_split=name).setup("validate")
    for more in ({}, {"train_split": "train"}):
        data = module(**options, val_split="extra", **more)
        assert [len(data.splits[split].source) for split in ("train", "val")] == [8, 8]
        assert "held out" not in data.description
    ImageNetDataModule(**options, train_split="train", val_split="extra").setup("validate")


def test_what_was_found_is_in_the_description_for_the_card(folder, tmp_path):
    (folder / "a" / "notes.txt").touch()
    data = module(source=str(folder), val_fraction=0.25, count=5, val_count=None)
    assert [note.what for note in data.found.passed_over] == ["files that are no pictures [.txt 1]", "images", "images"]
    assert [note.why[:11] for note in data.found.passed_over[1:]] == ["2 of 8 imag", "5 of 6 are "]
    assert data.description.endswith(", .pgm")  # held out and asked for are in the counts
    assert "notes" not in data.descriptions["train"]  # which a resumed run compares
    assert [note.what for note in module(source=str(folder), val_fraction=0).found.notes][-1] == "validation"
    assert ImageNetDataModule().description == ""


def test_what_was_found_in_a_cache(cache, tmp_path):
    data = module(cache=cache, count=None, val_count=None, val_fraction=0.2)
    assert data.found.splits == {"train": 16, "val": 4}
    assert [str(note) for note in data.found.passed_over] == [
        "images (4): 4 of 20 held out for validation, because there is no val_cache"
    ]
    rows = [(0, np.zeros((1, 6), dtype=np.int64))] * 3
    options = {"codebook_size": 50, "class_names": ["a", "b", "c"], "recipe": {}}
    write_token_cache(tmp_path / "gaps", rows, digest="d", **options)
    gaps = module(cache=str(tmp_path / "gaps"), count=2, val_fraction=0)
    assert "classes without a picture (2): b, c; sampling draws them all the same" in gaps.description
    assert any(note.why == "2 of the 3 of train are asked for" for note in gaps.found.passed_over)


class Recorder(lightning.LightningModule):
    """Keeps the positions and indices that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int]]] = []
        self.validated = 0

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        assert batch["image"].dtype == torch.float32
        self.seen.append((int(batch["position"][0]), batch["index"].tolist()))
        return self.weight * batch["image"].mean()

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        self.validated += len(batch["index"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches  # makes the loaders before the step is restored
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps_per_epoch", [None, 2])
def test_a_trainer_that_is_interrupted_sees_the_same_batches(tmp_path, steps_per_epoch):
    def run(steps: int, checkpoint: str | None = None) -> Recorder:
        trainer = lightning.Trainer(
            max_steps=steps,
            limit_train_batches=steps_per_epoch,
            val_check_interval=2,
            check_val_every_n_epoch=None if steps_per_epoch is None else 1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            use_distributed_sampler=True,
        )
        recorder = Recorder()
        trainer.fit(recorder, datamodule=ImageNetDataModule(**SMALL), ckpt_path=checkpoint, weights_only=False)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return recorder

    whole = run(7)
    assert [position for position, _ in whole.seen] == list(range(0, 28, 4))
    assert whole.validated >= 7
    first = run(3)
    rest = run(7, str(tmp_path / "last.ckpt"))
    assert first.seen + rest.seen == whole.seen
