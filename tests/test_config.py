"""compose: the traps that Lightning's own parsing falls into, and bad input."""

from pathlib import Path

import pytest
import yaml
from torch import nn

from alitok.artifacts.folder import load_artifact, save_artifact
from alitok.common.errors import BadInput
from alitok.config import DEFAULTS, compose, compose_run, load_yaml, resolve

QUANTIZER = "alitok.models.quantizer.ClusteredQuantizer"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
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
            losses: {{mse: {{class_path: alitok.losses.terms.MSE}}}}
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
            losses: {l1: {class_path: alitok.losses.terms.L1}}
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
        (["--define.siz", "3"], ["--define.siz", "'size'"]),
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
    assert load_yaml("experiments/ablation/prefix.yaml") == here
    assert here == {"define": {"num_prefix": "${div:${define.image_size},${define.patch_size}}"}}
    own = tmp_path / "experiments" / "ablation" / "prefix.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("define: {num_prefix: 3}")
    assert load_yaml("experiments/ablation/prefix.yaml") == {"define": {"num_prefix": 3}}
    with pytest.raises(BadInput, match="Cannot read configuration"):
        load_yaml("experiments/ablation/none.yaml")


def test_a_file_of_version_0_1_is_found_where_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_yaml("experiments/release/sizes/318M.yaml") == load_yaml("experiments/sizes/318M.yaml")


def test_a_configuration_builds_on_its_base(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    middle = "base: ../base.yaml\nmodel: {tokenizer: {code_dim: 4}, phases: {gan: null}}"
    middle = write(tmp_path, "folder/middle.yaml", middle)
    top = write(tmp_path, "folder/top.yaml", "base: middle.yaml\ndefine: {size: 8}\nmodel: {tokenizer: {decay: 0.25}}")
    config = compose([top])
    assert "base" not in config
    assert config["data"]["init_args"] == {"image_size": 8, "global_batch": 8}
    arguments = config["model"]["init_args"]
    assert arguments["tokenizer"]["init_args"] == {"codebook_size": 512, "code_dim": 4, "decay": 0.25}
    assert arguments["phases"] == {"main": {"steps": 10, "lr": 1e-3}}
    assert load_yaml(top)["define"] == {"size": 8, "sizes": [1, 2]}
    assert capsys.readouterr().err == ""  # what a variant changes needs no sentence
    with pytest.raises(BadInput, match=r"top\.yaml has a base, so it is a whole configuration: only the first -c"):
        compose([base, top])
    write(tmp_path, "base.yaml", "base: folder/top.yaml")
    with pytest.raises(BadInput, match=r"builds on itself: its base .*top\.yaml comes twice"):
        compose([top])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: [a.yaml]", "base must be the name of one file"),
        ("base: none.yaml", r"Cannot read configuration .*none.yaml: No such file"),
        ("base: ''", "Cannot read configuration"),
    ],
)
def test_a_base_that_cannot_be_read_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=words):
        compose([write(tmp_path, "a.yaml", text)])


def test_a_shipped_variant_that_was_copied_finds_its_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Path("experiments/imagenet512/generator.yaml").resolve()
    expected = load_yaml(shipped)
    monkeypatch.chdir(tmp_path)
    assert load_yaml(write(tmp_path, "mine.yaml", shipped.read_text())) == expected
    assert load_yaml(write(tmp_path, "other.yaml", "base: experiments/imagenet512/generator.yaml")) == expected


def test_arguments_may_stand_beside_class_path(base: Path, tmp_path: Path) -> None:
    beside = write(tmp_path, "a.yaml", f"model: {{tokenizer: {{class_path: {QUANTIZER}, decay: 0.1}}, seed: 3}}")
    inside = "model: {init_args: {tokenizer: {init_args: {decay: 0.1}}, seed: 3}}"
    assert compose([base, beside]) == compose([base, write(tmp_path, "b.yaml", inside)])
    with pytest.raises(BadInput, match=r"model\.seed stands both next to init_args and in it"):
        compose([base, write(tmp_path, "c.yaml", "model: {seed: 3, init_args: {seed: 4}}")])
    with pytest.raises(BadInput, match=r"model\.init_args\.sede, did you mean|model\.init_args\.sede"):
        compose([base, write(tmp_path, "d.yaml", "model: {sede: 3}")])


def test_composing_twice_gives_the_same(base: Path, tmp_path: Path) -> None:
    once = compose([base])
    again = compose([write(tmp_path, "once.yaml", yaml.safe_dump(once))])
    assert once == again


def test_a_value_that_files_refer_to_but_leave_open_can_be_given(tmp_path: Path) -> None:
    file = write(tmp_path, "open.yaml", "trainer: {max_steps: '${define.steps}'}")
    assert compose([file], ["--define.steps", "3"])["trainer"] == {"max_steps": 3}


TEXTS = [
    *("pets #2", "010", "2024_01_15", "12:30", "no", "on", "1e5", "0x1f", "1_0", "1.0", ".inf", "true", "~x-no-user"),
    *("&x", "*x", "@x", "%x", "!x", "|", "[x", "[a, b]", "{a}", "a: b", "a:", "- a", "#x", "`x`", "?", "'q'", '"q"'),
]
UNQUOTED = ["010", "2024_01_15", "12:30", "no", "on", "1e5", "0x1f", "1_0", "1.0", ".inf", "true"]
CIFAR = "experiments/cifar10/tokenizer-stage1.yaml"


def texts_of(config: dict, *more: str) -> list[str]:
    data = config["data"]["init_args"]
    return [data[key] for key in more or ("val_split",)]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_of_the_command_line_is_taken_to_the_letter(text: str) -> None:
    overrides = ["--define.source", text, f"--define.run={text}", "--data.val_split", text]
    config = compose_run([CIFAR], overrides)
    assert texts_of(config, "source", "val_split") == [text, text]
    assert config["define"]["source"] == config["define"]["run"] == text
    for composed in (config, resolve([DEFAULTS, CIFAR], overrides)):  # without the types of the classes, too
        trainer = composed["trainer"]
        assert trainer["default_root_dir"] == f"{text}/stage1"
        assert trainer["callbacks"]["checkpoint"]["init_args"]["dirpath"] == f"{text}/stage1/checkpoints"


@pytest.mark.parametrize("text", UNQUOTED)
@pytest.mark.parametrize("route", ["key", "define", "anchor", "merged", "list"])
def test_a_text_of_a_file_needs_no_quotes(text: str, route: str, tmp_path: Path) -> None:
    content = {
        "key": f"data: {{init_args: {{val_split: {text}}}}}",
        "define": f"define: {{split: {text}}}\ndata: {{init_args: {{val_split: '${{define.split}}'}}}}",
        "anchor": f"define: {{split: &it {text}}}\ndata: {{init_args: {{val_split: *it}}}}",
        "merged": f"define: {{all: &it {{val_split: {text}}}}}\ndata: {{init_args: {{<<: *it}}}}",
        "list": f"model: {{init_args: {{trainable: [{text}]}}}}",
    }[route]
    config = compose_run([CIFAR, write(tmp_path, "over.yaml", content)])
    assert (config["model"]["init_args"]["trainable"] if route == "list" else texts_of(config)) == [text]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_comes_back_from_the_files_of_a_run_and_an_artifact(text: str, tmp_path: Path) -> None:
    config = compose_run([CIFAR], ["--data.val_split", text, "--define.run", text])
    del config["define"]  # as `fit` writes it
    again = compose([write(tmp_path, "config.yaml", yaml.safe_dump(config, sort_keys=False))])
    assert again == config
    block = {"class_path": f"{__name__}.Named", "init_args": {"name": text}}
    save_artifact(tmp_path / "artifact", block, Named(text), {"kind": "tokenizer"})
    assert load_artifact(tmp_path / "artifact").name == text


class Named(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def test_an_artifact_whose_text_is_no_text_is_refused(tmp_path: Path) -> None:
    block = {"class_path": f"{__name__}.Named", "init_args": {"name": "x"}}
    save_artifact(tmp_path, block, Named("x"), {"kind": "tokenizer"})
    write(tmp_path, "config.yaml", f"class_path: {__name__}.Named\ninit_args: {{name: 010}}")
    with pytest.raises(BadInput, match="name must be text, not 8"):
        load_artifact(tmp_path)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("data.global_batch", "0x20", 32),
        ("data.count", "1_000", 1000),
        ("data.count", "null", None),
        ("data.flip", "no", False),
        ("data.val_fraction", "1e-1", 0.1),
        ("model.betas", "[0.9, 1e-1]", [0.9, 0.1]),
        ("model.phases.main", "steps: 5", {"steps": 5, "lr": [1e-3, 1e-4], "shape": "cosine"}),
        ("model.phases.main", "{steps: 5, shape: null}", {"steps": 5, "lr": [1e-3, 1e-4]}),
        ("trainer.devices", "2", 2),
        ("trainer.devices", "[0, 1]", [0, 1]),
        ("trainer.devices", "auto", "auto"),
        ("trainer.precision", "32", 32),
        ("trainer.max_time", "00:12:00:00", "00:12:00:00"),
        ("trainer.val_check_interval", "0.5", 0.5),
        ("trainer.logger", "false", False),
        ("define.image_size", "0x40", 64),
        ("seed_everything", "010", 8),
    ],
)
def test_what_is_no_text_is_read_as_yaml(key: str, text: str, value: object) -> None:
    *path, last = key.split(".")
    config = compose_run([CIFAR], [f"--{key}", text])
    node = config
    for name in path:
        node = node[name].get("init_args", node[name])
    assert node.get(last) == value
    assert type(node.get(last)) is type(value)


@pytest.mark.parametrize("home", ["~", "~/x"])
def test_a_home_folder_is_expanded_once_for_all_paths(home: str, tmp_path: Path) -> None:
    there, out = str(Path(home).expanduser()), write(tmp_path, "over.yaml", f"data: {{init_args: {{cache: '{home}'}}}}")
    keys = ["data.val_cache", "data.source", "model.start_from", "ckpt_path", "define.run"]
    weights = ["model.losses.p.weights", "model.losses.l.vgg_weights", "model.losses.l.linear_weights"]
    callbacks = [
        ("metrics.Reconstruction", "extractor"),
        ("metrics.Generation", "tokenizer"),
        ("metrics.Generation", "extractor"),
        ("metrics.Generation", "reference"),
        ("pictures.SampleGrid", "tokenizer"),
        ("artifact.ExportArtifact", "folder"),
    ]
    overrides = [
        *("--model.losses.p.class_path", "alitok.losses.perceptual.ConvNeXtLogits"),
        *("--model.losses.l.class_path", "alitok.losses.perceptual.LPIPS"),
        *(word for key in [*keys, *weights] for word in (f"--{key}", home)),
    ]
    for name, key in callbacks:
        place = name.rpartition(".")[2]
        overrides += [f"--trainer.callbacks.{place}.class_path=alitok.callbacks.{name}"]
        overrides += [f"--trainer.callbacks.{place}.{key}={home}"]
    config = compose_run([CIFAR, out], overrides)
    assert [leaf for leaf in leaves(config) if "~" in str(leaf)] == []
    assert leaves(config).count(there) == len(keys) + len(weights) + len(callbacks) + 1
    assert config["trainer"]["default_root_dir"] == f"{there}/stage1"
    assert resolve([DEFAULTS, CIFAR, out], overrides)["trainer"]["default_root_dir"] == f"{there}/stage1"


def leaves(value: object) -> list:
    if isinstance(value, dict | list):
        return [leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in leaves(item)]
    return [value]


@pytest.mark.parametrize(
    ("key", "name", "said"),
    [
        ("model", "torch.nn.Linear", "model: torch.nn.Linear is no LightningModule"),
        ("data", "alitok.models.encoder.Encoder", "data: .* is no LightningDataModule"),
        ("model.tokenizer.encoder", "subprocess.Popen", "encoder: subprocess.Popen is no Encoder"),
        ("model.tokenizer.bottleneck", "alitok.losses.terms.MSE", "bottleneck: .* is no Bottleneck"),
        ("model.losses.prefix.perceptual", "torch.nn.Linear", "perceptual: .* is no Perceptual"),
    ],
)
def test_a_class_of_another_kind_is_refused(key: str, name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        compose_run([CIFAR], [f"--{key}.class_path", name])


def test_a_part_without_a_class_is_refused() -> None:
    with pytest.raises(
        BadInput, match=r"bottleneck must be a map with the class_path of a Bottleneck, not \{'p': 0.3\}"
    ):
        compose_run([CIFAR], ["--model.tokenizer.bottleneck.p", "0.3"])


def test_whole_arguments_by_an_override(base: Path) -> None:
    config = compose([base], ["--model.tokenizer.init_args", "{decay: 0.1}"])
    assert config["model"]["init_args"]["tokenizer"]["init_args"]["decay"] == 0.1
    block = "{class_path: alitok.losses.terms.MSE}"
    other = compose([base], ["--model.losses.new", block, "--model.losses.mse", "null"])
    assert other["model"]["init_args"]["losses"] == {"new": {"class_path": "alitok.losses.terms.MSE"}}
    lpips = "{class_path: alitok.losses.perceptual.LPIPS, vgg_weights: here}"
    found = compose([base], ["--model.losses.new", lpips])["model"]["init_args"]["losses"]["new"]
    assert found["init_args"] == {"vgg_weights": "here"}
    with pytest.raises(BadInput):
        compose([base], ["--model.init_args", "5"])


def test_an_unknown_key_of_an_overlay_is_named_with_its_file(tmp_path: Path) -> None:
    experiments = Path(__file__).parents[1] / "experiments"
    stage1 = experiments / "demo" / "tokenizer-stage1.yaml"
    with pytest.raises(BadInput, match=r"Unknown configuration key model.init_args.generator, set by .*ort\.yaml"):
        compose_run([stage1, experiments / "ideas" / "ort.yaml"])
    (tmp_path / "mine.yaml").write_text("model: {init_args: {codebok_lr: 1.0}}")
    with pytest.raises(BadInput, match=r"codebok_lr, set by .*mine\.yaml; did you mean 'codebook_lr'"):
        compose_run([stage1, tmp_path / "mine.yaml"])
    with pytest.raises(BadInput, match=r"codebok_lr; did you mean 'codebook_lr'"):
        compose_run([stage1], ["--model.codebok_lr", "1.0"])
