"""A run that goes on with another configuration is refused or announced, key by key."""

from typing import Any

import pytest

from alitok.common.errors import BadInput
from alitok.training.changes import check_changes, compare

BEFORE: dict[str, Any] = {
    "seed_everything": 0,
    "define": {"run": "a"},
    "model": {"class_path": "M", "init_args": {"seed": 0, "betas": [0.9, 0.99], "guidance": 1.0, "net": {"width": 8}}},
    "data": {"class_path": "D", "init_args": {"global_batch": 8, "num_workers": 2}},
    "trainer": {"devices": 1, "callbacks": {"checkpoint": {"class_path": "C", "init_args": {"keep": 1}}}},
}


def changed(**paths: Any) -> dict[str, Any]:
    import copy

    config = copy.deepcopy(BEFORE)
    for path, value in paths.items():
        *names, last = path.split("__")
        node = config
        for name in names:
            node = node[name]
        node[last] = value
    return config


def test_keys_that_differ() -> None:
    now = changed(model__init_args__net__width=16, define={"run": "b"}, trainer__strategy="ddp")
    del now["data"]["init_args"]["num_workers"]
    assert compare(BEFORE, now) == {
        "model.net.width": (8, 16),
        "data.num_workers": (2, None),
        "trainer.strategy": (None, "ddp"),
    }
    assert compare(BEFORE, changed(model__init_args__betas=(0.9, 0.99))) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"seed_everything": 1},
        {"model__init_args__net__width": 16},
        {"model__class_path": "N"},
        {"data__init_args__global_batch": 16},
        {"trainer__callbacks__average": {"class_path": "E", "init_args": {"decay": 0.9}}},
    ],
)
def test_what_changes_the_course_of_training_is_refused(change: dict[str, Any]) -> None:
    now = changed(**change)
    with pytest.raises(BadInput, match=r"step=5.ckpt belongs to: .* -> .*--allow-changes"):
        check_changes(BEFORE, now, False, "step=5.ckpt")
    assert check_changes(BEFORE, now, True, "step=5.ckpt")[0].startswith("continuing with a changed ")


def test_the_rest_is_announced() -> None:
    now = changed(trainer__devices=2, data__init_args__num_workers=4, model__init_args__guidance=2.0)
    now["trainer"]["callbacks"]["checkpoint"]["init_args"]["keep"] = 3
    assert check_changes(BEFORE, now, False, "") == [
        "continuing with a changed model.guidance: 1.0 -> 2.0",
        "continuing with a changed data.num_workers: 2 -> 4",
        "continuing with a changed trainer.devices: 1 -> 2",
        "continuing with a changed trainer.callbacks.checkpoint.keep: 1 -> 3",
    ]


def test_all_keys_are_named_in_one_sentence() -> None:
    now = changed(model__init_args__net__width=16, seed_everything=1, trainer__devices=2)
    with pytest.raises(BadInput) as error:
        check_changes(BEFORE, now, False, "c")
    assert "seed_everything: 0 -> 1; model.net.width: 8 -> 16." in str(error.value)
    assert "devices" not in str(error.value)


def test_the_order_of_phases_counts() -> None:
    first, second = ({"model": {"init_args": {"phases": dict.fromkeys(names, 1)}}} for names in ("ab", "ba"))
    assert compare(first, second) == {"model.phases (order)": (["a", "b"], ["b", "a"])}
