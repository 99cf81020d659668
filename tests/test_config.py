"""compose: the traps that Lightning's own parsing falls into, and bad input."""

from pathlib import Path

import pytest
import yaml

from alitok.common.errors import BadInput
from alitok.config import compose, compose_run, load_yaml

QUANTIZER = "alitok.models.quantizer.ClusteredQuantizer"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        "base.yaml",
        f"""
        define: {{size: 64, sizes: [1, 2]}}
        model:
          class_path: alitok.training.tokenizer.TokenizerTraining
          init_args:
            tokenizer:
              class_path: {QUANTIZER}
              init_args: {{codebook_size: 512, code_dim: 8, decay: 0.5}}
            losses: {{mse: {{class_path: alitok.losses.reconstruction.MSE}}}}
            phases:
              main: {{steps: 10, lr: 1.e-3}}
              gan: {{steps: 5, lr: 1.e-4}}
        data:
          class_path: alitok.data.datamodule.ImageNetDataModule
          init_args: {{image_size: "${{define.size}}", global_batch: "${{define.size}}"}}
        """,
    )


def test_a_size_shared_by_reference_is_the_same_everywhere_after_an_overlay(base: Path, tmp_path: Path) -> None:
    overlay = write(tmp_path, "overlay.yaml", "define: {size: 32}")
    data = compose([base, overlay])["data"]["init_args"]
    assert data == {"image_size": 32, "global_batch": 32}
    assert compose([base], ["--define.size", "16"])["data"]["init_args"]["image_size"] == 16


def test_maps_merge_and_one_entry_can_be_changed_added_or_removed(base: Path, tmp_path: Path) -> None:
    overlay = write(
        tmp_path,
        "overlay.yaml",
        """
        model:
          init_args:
            phases: {main: {steps: 20}, gan: null}
            losses: {l1: {class_path: alitok.losses.reconstruction.L1}}
        """,
    )
    arguments = compose([base, overlay])["model"]["init_args"]
    assert arguments["phases"] == {"main": {"steps": 20, "lr": 1e-3}}
    assert list(arguments["losses"]) == ["mse", "l1"]


def test_another_class_keeps_only_the_arguments_it_knows(base: Path, tmp_path: Path) -> None:
    overlay = write(
        tmp_path,
        "overlay.yaml",
        "model: {init_args: {tokenizer: {class_path: torch.nn.Embedding,"
        " init_args: {num_embeddings: 3, embedding_dim: 4}}}}",
    )
    block = compose([base, overlay])["model"]["init_args"]["tokenizer"]
    assert block == {"class_path": "torch.nn.Embedding", "init_args": {"num_embeddings": 3, "embedding_dim": 4}}
    same = write(tmp_path, "same.yaml", f"model: {{init_args: {{tokenizer: {{class_path: {QUANTIZER}}}}}}}")
    assert compose([base, same])["model"]["init_args"]["tokenizer"]["init_args"]["decay"] == 0.5


def test_overrides_may_leave_out_init_args_and_are_read_as_yaml(base: Path) -> None:
    config = compose(
        [base],
        [
            "--data.global_batch=8",
            "--model.phases.main.lr",
            "[1e-4, 2e-5]",
            "--model.init_args.phases.main.shape",
            "cosine",
        ],
    )
    assert config["data"]["init_args"]["global_batch"] == 8
    assert config["model"]["init_args"]["phases"]["main"] == {"steps": 10, "lr": [1e-4, 2e-5], "shape": "cosine"}


def test_lists_are_replaced(base: Path) -> None:
    assert compose([base], ["--define.sizes", "[5]"])["define"]["sizes"] == [5]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--data.globl_batch", "3"], ["data.init_args.globl_batch", "global_batch"]),
        (["--trainer.max_step", "3"], ["trainer.max_step", "max_steps"]),
        (["--modle.x", "3"], ["modle", "model"]),
        (["--model.tokenizer.codebook_sise", "3"], ["tokenizer.init_args.codebook_sise", "codebook_size"]),
        (["--define.size.deep", "3"], ["size is a value"]),
        (["--data.image_size", "${define.sise}"], ["sise"]),
        (["--data.global_batch"], ["no value"]),
        (["global_batch=3"], ["--key value"]),
        (["--model.tokenizer.class_path", "alitok.models.quantizer.ClusterdQuantizer"], ["ClusteredQuantizer"]),
        (["--data.global_batch", "[1"], ["no valid YAML"]),
        (["--model.tokenizer.codebook_size", "null"], ["codebook_size", "missing"]),
        (["--model.tokenizer.codebook_size", "many"], ["tokenizer.init_args.codebook_size", "whole number", "'many'"]),
        (["--data.flip", "3"], ["data.init_args.flip", "true or false"]),
        (["--model.betas", "0.9"], ["model.init_args.betas", "a list of 2"]),
        (["--model.tokenizer.anchor", "far"], ["tokenizer.init_args.anchor", "nearest or random"]),
        (["--define.sizze", "3"], ["--define.sizze", "'size'"]),
    ],
)
def test_what_is_mistyped_is_named_with_the_nearest(base: Path, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(BadInput) as caught:
        compose([base], overrides)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Cannot read"):
        compose([tmp_path / "none.yaml"])
    with pytest.raises(BadInput, match="no valid YAML"):
        compose([write(tmp_path, "a.yaml", "a: [1\nb: }")])
    with pytest.raises(BadInput, match="no map"):
        compose([write(tmp_path, "b.yaml", "- 1")])
    with pytest.raises(BadInput, match="no 'model'"):
        compose_run([write(tmp_path, "c.yaml", "trainer: {max_steps: 3}")])


def test_shipped_files_are_found_where_there_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = load_yaml(Path("experiments/ablation/prefix.yaml"))
    monkeypatch.chdir(tmp_path)
    assert load_yaml("experiments/ablation/prefix.yaml") == here == {"define": {"num_prefix": 8}}
    own = tmp_path / "experiments" / "ablation" / "prefix.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("define: {num_prefix: 3}")
    assert load_yaml("experiments/ablation/prefix.yaml") == {"define": {"num_prefix": 3}}
    with pytest.raises(BadInput, match="Cannot read configuration"):
        load_yaml("experiments/ablation/none.yaml")


def test_composing_twice_gives_the_same(base: Path, tmp_path: Path) -> None:
    once = compose([base])
    again = compose([write(tmp_path, "once.yaml", yaml.safe_dump(once))])
    assert once == again


def test_a_value_that_files_refer_to_but_leave_open_can_be_given(tmp_path: Path) -> None:
    file = write(tmp_path, "open.yaml", "trainer: {max_steps: '${define.steps}'}")
    assert compose([file], ["--define.steps", "3"])["trainer"] == {"max_steps": 3}
