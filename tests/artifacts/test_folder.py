import json
import subprocess
import sys
from functools import partial

import huggingface_hub
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

import alitok
from alitok.artifacts.folder import check_pair, load_artifact, load_extra, load_generator, load_tokenizer, save_artifact
from alitok.common.build import build
from alitok.common.digest import tokenizer_digest
from alitok.common.errors import BadInput


class Tied(nn.Module):
    """Two layers that share a weight, a table that is not saved, a view as a buffer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(float(width)), persistent=False)
        self.register_buffer("view", torch.arange(12.0).view(3, 4).T[1:])


@pytest.fixture
def tokenizer(golden, small_tokenizer_block):
    return golden.randomize(build(small_tokenizer_block(1)))


@pytest.fixture
def folder(tmp_path, tokenizer, small_tokenizer_block):
    card = {"kind": "tokenizer", "steps": 12, "data": "shapes", "class_names": ["a", "b"], "note": "kept"}
    save_artifact(tmp_path / "tokenizer", small_tokenizer_block(1), tokenizer, card)
    return tmp_path / "tokenizer"


@pytest.fixture(params=["small", "large"])
def sizes(request, monkeypatch):
    """Artifacts are read as small ones and as large ones."""
    if request.param == "large":
        monkeypatch.setattr("alitok.artifacts.folder.SMALL", -1)


@pytest.fixture
def save_generator(tmp_path, golden, small_generator_block):
    def save(arguments: dict, **card):
        block = small_generator_block(**arguments)
        module = golden.randomize(build(block))
        save_artifact(tmp_path / "generator", block, module, {"kind": "generator", **card})
        return tmp_path / "generator"

    return save


@pytest.mark.usefixtures("sizes")
def test_round_trip(folder, tokenizer):
    loaded = load_tokenizer(folder)
    assert not loaded.training
    state = loaded.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tokenizer.state_dict().items())
    assert all(p.requires_grad for p in loaded.parameters())
    images = torch.rand(2, 3, 32, 32)
    ids = loaded.encode(images)
    assert torch.equal(ids, tokenizer.encode(images))
    assert torch.equal(loaded.decode(ids), tokenizer.decode(ids))
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "config.yaml", "model.safetensors"]


@pytest.mark.usefixtures("sizes")
def test_loaded_module_trains_and_is_saved_again(folder, tmp_path):
    loaded = load_artifact(folder)
    loaded.train()(torch.rand(1, 3, 32, 32))["image"].mean().backward()
    assert loaded.decoder.embed.weight.grad is not None
    save_artifact(tmp_path / "again", loaded.block, loaded, loaded.card)
    for name in ("card.json", "config.yaml", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_card(folder, tokenizer):
    card = json.loads((folder / "card.json").read_text())
    assert card == load_tokenizer(folder).card
    assert card["kind"] == "tokenizer"
    assert card["version"] == alitok.__version__
    assert card["digest"] == tokenizer_digest(tokenizer)
    assert (card["steps"], card["data"], card["class_names"], card["note"]) == (12, "shapes", ["a", "b"], "kept")
    assert (card["parents"], card["metrics"], card["images_seen"]) == ({}, {}, None)
    assert "guidance" not in card


def test_generator_card(save_generator):
    generator = load_generator(save_generator({}, guidance=3.0, metrics={"loss": torch.tensor(0.5)}))
    assert generator.card["guidance"] == 3.0
    assert generator.card["metrics"] == {"loss": 0.5}
    assert {"tokenizer", "power", "seed"} <= generator.card.keys()
    ids = alitok.generate(generator, torch.tensor([0, 2]), seed=1)
    assert torch.equal(ids, alitok.generate(generator, torch.tensor([0, 2]), 3.0, 1.0, seed=1))


def test_an_artifact_at_a_link_is_where_the_link_leads(tmp_path, folder):
    loaded = load_artifact(folder)
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    for note in ("first", "second"):  # and replaces an older one
        save_artifact(tmp_path / "link", loaded.block, loaded, {**loaded.card, "note": note})
        assert (tmp_path / "link").is_symlink()
        assert load_artifact(tmp_path / "disk").card["note"] == note


def test_extra_modules_travel(tmp_path, tokenizer, small_tokenizer_block):
    block = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "out_features": 2}}
    extra = build(block)
    save_artifact(
        tmp_path / "a", small_tokenizer_block(1), tokenizer, {"kind": "tokenizer"}, {"critic": (block, extra)}
    )
    loaded = load_extra(tmp_path / "a", "critic")
    assert torch.equal(loaded.weight, extra.weight)
    assert loaded.block == block
    assert load_extra(tmp_path / "a", "other") is None


@pytest.mark.usefixtures("sizes")
def test_tied_weights_views_and_unsaved_tables(tmp_path):
    block = {"class_path": f"{__name__}.Tied", "init_args": {"width": 4}}
    module = build(block)
    save_artifact(tmp_path / "a", block, module, {"kind": "generator"})
    assert "second.weight" not in load_file(tmp_path / "a" / "model.safetensors")
    loaded = load_artifact(tmp_path / "a")
    assert loaded.second.weight is loaded.first.weight
    assert torch.equal(loaded.first.weight, module.first.weight)
    assert torch.equal(loaded.view, module.view)
    assert loaded.table.tolist() == [0, 1, 2, 3]


def test_digest_covers_what_decides_the_ids(golden, tokenizer, small_tokenizer_block):
    digest = tokenizer_digest(tokenizer)
    stage2 = golden.randomize(build(small_tokenizer_block(2)))
    stage2.encoder.load_state_dict(tokenizer.encoder.state_dict())
    stage2.quantizer.load_state_dict(tokenizer.quantizer.state_dict())
    stage2.quantizer.usage.add_(1)
    assert tokenizer_digest(stage2) == digest
    for tensor in (stage2.encoder.latent_tokens, stage2.quantizer.codebook.weight):
        kept = tensor.detach().clone()
        tensor.data[0, 0] += 1e-3
        assert tokenizer_digest(stage2) != digest
        tensor.data.copy_(kept)
    assert tokenizer_digest(stage2) == digest


def test_pair(folder, save_generator):
    stage1 = load_tokenizer(folder)
    check_pair(load_generator(save_generator({}, tokenizer=stage1.card["digest"])), stage1)
    check_pair(load_generator(save_generator({})), stage1)  # published weights name no tokenizer
    other = load_generator(save_generator({}, tokenizer="0" * 64))
    with pytest.raises(BadInput, match=f"tokenizer 000000000000, but this tokenizer is {stage1.card['digest'][:12]}"):
        check_pair(other, stage1)
    with pytest.raises(BadInput, match="knows 23 codes and the tokenizer has 24"):
        check_pair(load_generator(save_generator({"codebook_size": 23})), stage1)
    with pytest.raises(BadInput, match="knows 20 tokens an image and the tokenizer has 21"):
        check_pair(load_generator(save_generator({"num_prefix": 4})), stage1)


def test_other_kind(folder, save_generator):
    with pytest.raises(BadInput, match="is a tokenizer, but a generator is needed"):
        load_generator(folder)
    with pytest.raises(BadInput, match="is a generator, but a tokenizer is needed"):
        load_tokenizer(save_generator({}))


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "card.json"])
def test_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(BadInput, match=f"not an artifact: {name} is missing"):
        load_artifact(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(BadInput, match="there is no such folder"):
        load_artifact(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"\(make: TOKENIZER=\)"):
        load_tokenizer(tmp_path / "nowhere")


def test_damaged_files(folder):
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for damaged in (content[:-100], b"", b"not safetensors at all"):
        weights.write_bytes(damaged)
        with pytest.raises(BadInput, match="missing or damaged"):
            load_artifact(folder)
    weights.write_bytes(content)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text("class_path: [")
    with pytest.raises(BadInput, match="not readable YAML"):
        load_artifact(folder)
    (folder / "config.yaml").write_text("init_args: {}")
    with pytest.raises(BadInput, match="should hold class_path"):
        load_artifact(folder)
    (folder / "config.yaml").write_text(config)
    (folder / "card.json").write_text("{")
    with pytest.raises(BadInput, match="not readable JSON"):
        load_artifact(folder)
    (folder / "card.json").write_text("[]")
    with pytest.raises(BadInput, match="should hold a map"):
        load_artifact(folder)


@pytest.mark.usefixtures("sizes")
def test_weights_that_do_not_fit_are_named(folder):
    weights = folder / "model.safetensors"
    state = load_file(weights)
    name = "decoder.embed.weight"
    save_file({**state, name: torch.zeros(2, 3)}, weights)
    with pytest.raises(BadInput, match=rf"{name} is \(2, 3\) and should be \(128, 8\)"):
        load_artifact(folder)
    save_file({key: value for key, value in state.items() if key != name}, weights)
    with pytest.raises(BadInput, match=rf"{name} is absent and should be \(128, 8\)"):
        load_artifact(folder)
    save_file({**state, "more": torch.zeros(1)}, weights)
    with pytest.raises(BadInput, match=r"more is \(1,\) and should be absent"):
        load_artifact(folder)


def test_weights_of_another_float_type_get_the_models(folder):
    weights = folder / "model.safetensors"
    state = load_file(weights)
    halved = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(halved, weights)
    loaded = load_artifact(folder).state_dict()
    assert all(loaded[name].dtype == tensor.dtype for name, tensor in state.items())
    assert all(torch.equal(loaded[name], halved[name].to(tensor.dtype)) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_path": "alitok.models.tokenizer.Tokenizr"}, "did you mean 'Tokenizer'"),
        ({"class_path": "os.system", "init_args": {"command": "true"}}, "os.system, which is no torch module"),
        ({"init_args": {"encoder": {"class_path": "builtins.print"}}}, "builtins.print, which is no torch module"),
        ({"init_args": {"encodr": 1}}, "did you mean 'encoder'"),
    ],
)
def test_class_that_cannot_be_built(folder, change, words):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **change}))
    with pytest.raises(BadInput, match=words):
        load_artifact(folder)


def test_sizes_that_the_class_refuses(folder):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["init_args"]["encoder"]["init_args"]["heads"] = 5
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(BadInput, match=r"cannot be built: .*Encoder: width 64 does not divide into 5 heads"):
        load_artifact(folder)
    config["init_args"]["encoder"]["init_args"].update(heads=1, num_latents=10**15)  # more than any memory
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(BadInput, match=r"config\.yaml cannot be built: .*; it was made for another version"):
        load_artifact(folder)


@pytest.mark.usefixtures("sizes")
def test_reading_leaves_the_random_numbers_of_whoever_reads(folder):
    random_state = torch.get_rng_state()
    load_artifact(folder)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_small_artifact_needs_no_compiler(folder):
    """torch imports it for the meta device, which takes longer than all else that a small artifact needs."""
    script = f"import sys, alitok; alitok.load_tokenizer({str(folder)!r}); assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_folder_with_other_things_is_left_alone(tmp_path, tokenizer, small_tokenizer_block):
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(BadInput, match="something else than an artifact"):
        save_artifact(tmp_path, small_tokenizer_block(1), tokenizer, {"kind": "tokenizer"})
    assert (tmp_path / "thesis.txt").exists()


def test_failed_save_leaves_the_older_artifact(folder, tokenizer, small_tokenizer_block):
    before = (folder / "card.json").read_bytes()
    with pytest.raises(TypeError):
        save_artifact(folder, small_tokenizer_block(1), tokenizer, {"kind": "tokenizer", "data": object()})
    assert (folder / "card.json").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["tokenizer"]


def test_unknown_kind(tmp_path, tokenizer, small_tokenizer_block):
    with pytest.raises(ValueError, match="needs a kind"):
        save_artifact(tmp_path / "a", small_tokenizer_block(1), tokenizer, {})


def test_hub(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        if name != "someone/tokens":
            raise OSError("Repository not found.\nMany more lines.")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert load_tokenizer("someone/tokens").card["kind"] == "tokenizer"
    with pytest.raises(BadInput, match=r"hub does not give it: Repository not found\.$"):
        load_tokenizer("someone/else")
    with pytest.raises(BadInput, match="no such folder"):
        load_tokenizer("./else")
    assert asked == ["someone/tokens", "someone/else"]


def test_training_does_not_write_to_the_file(folder):
    before = (folder / "model.safetensors").read_bytes()
    loaded = load_tokenizer(folder)
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.add_(1)
    assert (folder / "model.safetensors").read_bytes() == before


IMPORTED = "import pathlib\npathlib.Path('imported').touch()\nfrom alitok.models.seams import Bottleneck\n"
IMPORTED += "class Thing(Bottleneck): pass\n"


@pytest.mark.parametrize("place", ["top", "part", "extra"])
def test_an_artifact_of_the_hub_names_classes_of_alitok_only(
    place, folder, tmp_path, tokenizer, small_tokenizer_block, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    (tmp_path / f"idea_{place}.py").write_text(IMPORTED)
    block = {"class_path": f"idea_{place}.Thing"}
    if place == "extra":
        extra = {"critic": (block, torch.nn.Identity())}
        save_artifact(folder, small_tokenizer_block(1), tokenizer, {"kind": "tokenizer"}, extra)
        load = partial(load_extra, name="critic")
    else:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        block = block if place == "top" else {**config, "init_args": {**config["init_args"], "bottleneck": block}}
        (folder / "config.yaml").write_text(yaml.safe_dump(block))
        load = load_tokenizer
    with pytest.raises(BadInput, match=rf"names idea_{place}\.Thing, and an artifact of the hub may only name"):
        load("someone/tokens")
    assert not (tmp_path / "imported").exists()
    if place != "top":
        load(folder)  # of a folder here, classes of the working folder count
        assert (tmp_path / "imported").exists()


@pytest.mark.parametrize("name", ["subprocess.Popen", "os.system", "antigravity.Thing", "torch.load", "pathlib.Path"])
def test_an_artifact_names_torch_modules_only(name, folder):
    (folder / "config.yaml").write_text(yaml.safe_dump({"class_path": name, "init_args": {"args": "true"}}))
    with pytest.raises(BadInput, match=f"names {name}, which is no torch module"):
        load_artifact(folder)
    assert "antigravity" not in sys.modules
