import pickle

import pytest
import torch

from alitok.artifacts.folder import load_artifact, load_extra, load_generator, load_tokenizer, save_artifact
from alitok.artifacts.published import _recognize, export_release, import_release
from alitok.artifacts.release import generator_to_release, tokenizer_to_release
from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.common.files import sha256
from alitok.losses.adversarial import BlurDiscriminator


@pytest.fixture
def tokenizer_state(golden, small_tokenizer_block):
    def make(stage: int) -> dict[str, torch.Tensor]:
        state = tokenizer_to_release(golden.randomize(build(small_tokenizer_block(stage))).state_dict())
        return {name: tensor.clone() for name, tensor in state.items()}

    return make


@pytest.fixture
def generator_state(golden):
    return golden.fill(golden.json("official_ar_tiny_keys"))


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


def test_stage2_both_ways(tmp_path, tokenizer_state, golden, small_tokenizer_block):
    state = tokenizer_state(2)
    torch.save(state, tmp_path / "AliTok.pth")
    model = load_tokenizer(import_release(tmp_path / "AliTok.pth", tmp_path / "out"))
    assert_same(torch.load(export_release(tmp_path / "out", tmp_path / "back.pth"), weights_only=True), state)
    original = golden.randomize(build(small_tokenizer_block(2)))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.encode(images), original.encode(images))
    assert torch.equal(model.decode(model.encode(images)), original.decode(original.encode(images)))
    assert not model.quantizer.clustering
    assert not model.decoder.blocks[0].attention.causal
    assert "stage 2, 21 tokens of 24 codes for 32 x 32 pixels" in model.card["description"]
    assert model.card["parents"] == {"AliTok.pth": sha256(tmp_path / "AliTok.pth")}


def test_stage1_checkpoint_both_ways(tmp_path, tokenizer_state):
    state = tokenizer_state(1)
    torch.save({"model_state": state, "epoch": 3, "optimizer": {"lr": 1e-4}}, tmp_path / "stage1.pt")
    model = load_tokenizer(import_release(tmp_path / "stage1.pt", tmp_path / "out"))
    assert model.quantizer.clustering
    assert model.decoder.blocks[0].attention.causal
    assert torch.equal(model.quantizer.usage, state["quantize.embed_prob"])
    assert load_extra(tmp_path / "out", "discriminator") is None
    back = torch.load(export_release(tmp_path / "out", tmp_path / "back.pt"), weights_only=True)
    assert back.keys() == {"model_state"}
    assert_same(back["model_state"], state)


@pytest.mark.parametrize("stage", [1, 2])
def test_discriminator_travels(tmp_path, tokenizer_state, stage):
    critic = BlurDiscriminator(width=32, stages=(32, 64))
    theirs = {f"discriminator.{name}": tensor for name, tensor in critic.state_dict().items()}
    state = {**tokenizer_state(stage), **theirs}
    torch.save({"model_state": state}, tmp_path / "a.pt")
    import_release(tmp_path / "a.pt", tmp_path / "out")
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(load_extra(tmp_path / "out", "discriminator")(images), critic(images))
    back = torch.load(export_release(tmp_path / "out", tmp_path / "back.pt"), weights_only=True)
    assert_same(back["model_state"], state)
    del state["discriminator.block_in.0.bias"]
    torch.save({"model_state": state}, tmp_path / "a.pt")
    with pytest.raises(BadInput, match=r"block_in\.0\.bias is absent"):
        import_release(tmp_path / "a.pt", tmp_path / "other")


def test_generator_both_ways(tmp_path, golden, generator_state):
    torch.save(generator_state, tmp_path / "tiny.bin")
    model = load_generator(import_release(tmp_path / "tiny.bin", tmp_path / "out"))
    assert_same(torch.load(export_release(tmp_path / "out", tmp_path / "back.bin"), weights_only=True), generator_state)
    expected = golden.arrays("ar_tiny_release")
    with torch.no_grad():
        logits = model(expected["ids"], expected["classes"])[:, ::13]
    torch.testing.assert_close(logits, expected["logits_cond"][:, :21], rtol=0, atol=1e-4)
    assert model.card["guidance"] is None
    assert model.card["class_names"] is None


def test_older_file_format_of_torch(tmp_path, generator_state):
    torch.save(generator_state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    load_generator(import_release(tmp_path / "old.bin", tmp_path / "out"))
    assert_same(torch.load(export_release(tmp_path / "out", tmp_path / "back.bin"), weights_only=True), generator_state)


def test_size_b_at_full_width(tmp_path, golden):
    """Two of its 24 layers would not be B, so the real shapes are used: 177 M parameters, all zero."""
    shapes = golden.json("official_ar_b_keys")
    torch.save({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "alitok_b.bin")
    model = load_generator(import_release(tmp_path / "alitok_b.bin", tmp_path / "out"))
    assert sum(p.numel() for p in model.parameters()) == 177_048_064
    assert (model.num_tokens, model.num_classes, model.heads) == (273, 1000, 16)
    card = model.card
    assert (card["guidance"], card["power"], card["seed"]) == (16.0, 1.8, 42)
    assert card["metrics"] == {"published": {"fid": 1.50, "inception_score": 305.9}}
    assert (len(card["class_names"]), card["class_names"][207]) == (1000, "golden retriever")
    assert "177M" in card["description"]


@pytest.mark.parametrize(("stage", "keys"), [(1, "official_stage1_keys"), (2, "official_tokenizer_keys")])
def test_full_size_tokenizers_are_recognized(golden, stage, keys):
    state = {name: torch.empty(shape, device="meta") for name, shape in golden.json(keys).items()}
    block, module = _recognize(state, "file")
    parts = block["init_args"]
    assert parts["encoder"]["init_args"] == {
        "image_size": 256, "patch_size": 16, "num_latents": 273, "code_dim": 32, "width": 768, "depth": 12, "heads": 12,
    }  # fmt: skip
    decoder = {"width": 1024, "depth": 24, "heads": 16, "num_prefix": 17, "causal": stage == 1}
    assert decoder.items() <= parts["decoder"]["init_args"].items()
    assert parts["decoder"]["init_args"]["buffer_tokens"] == (1 if stage == 1 else 32)
    assert sum(p.numel() for p in module.parameters()) == (390_623_032 if stage == 1 else 389_899_308)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickled object was executed",))


def test_pickled_objects_are_never_executed(tmp_path, generator_state):
    torch.save({**generator_state, "trap": Trap()}, tmp_path / "a.bin")
    with pytest.raises(BadInput, match="Python objects besides tensors, which are never executed"):
        import_release(tmp_path / "a.bin", tmp_path / "out")
    (tmp_path / "b.bin").write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(BadInput, match=r"b\.bin cannot be read"):
        import_release(tmp_path / "b.bin", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_something_else(tmp_path, tokenizer_state, generator_state):
    def refused(content, words: str) -> None:
        path = tmp_path / "a.bin"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        with pytest.raises(BadInput, match=words) as error:
            import_release(path, tmp_path / "out")
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)

    torch.save(generator_state, tmp_path / "whole.bin")
    refused((tmp_path / "whole.bin").read_bytes()[:5000], "damaged, a git-lfs pointer or no PyTorch file")
    refused(b"", "cannot be read")
    refused(b"<html>not found</html>", "damaged, a git-lfs pointer or no PyTorch file")
    refused(torch.zeros(3), "no map of names to tensors")
    refused({}, "no map of names to tensors")
    refused({"a": 1}, "its entry 'a' is no tensor")
    refused({"weight": torch.zeros(1)}, "is not AliTok.pth, alitok_b.bin")
    refused({k: v for k, v in generator_state.items() if k != "norm.weight"}, r"nearest to a generator.*'norm\.weight'")
    stage2 = tokenizer_state(2)
    refused({**stage2, "more": torch.zeros(2)}, r"more is \(2,\) and should be absent")
    name = "decoder.transformer.1.ln_1.bias"
    refused({k: v for k, v in stage2.items() if k != name}, rf"{name} is absent and should be \(128,\)")
    refused({**stage2, "latent_tokens": torch.zeros(3)}, r"'latent_tokens' has shape \(3,\)")
    refused({k: v[..., :60] if k == "latent_tokens" else v for k, v in stage2.items()}, r"latent_tokens is \(21, 60\)")
    narrow = torch.zeros(4, 100)
    refused(
        {**stage2, "decoder.class_embedding": narrow}, "width of 100 does not divide into the release's heads of 64"
    )
    assert not (tmp_path / "out").exists()


def test_missing_file(tmp_path):
    with pytest.raises(BadInput, match="There is no file"):
        import_release(tmp_path / "AliTok.pth", tmp_path / "out")
    with pytest.raises(BadInput, match="There is no file"):
        import_release(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("stage", "decoder"),
    [(2, {"drop_prefix": True}), (2, {"causal": True}), (1, {"causal": False}), (2, {"heads": 4})],
)
def test_forms_that_the_release_does_not_know(tmp_path, small_tokenizer_block, stage, decoder):
    block = small_tokenizer_block(stage, **decoder)
    save_artifact(tmp_path / "a", block, build(block), {"kind": "tokenizer"})
    with pytest.raises(BadInput, match="form that the release's files do not know"):
        export_release(tmp_path / "a", tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()


def test_generator_positions_that_the_release_does_not_know(tmp_path, small_generator_block):
    block = small_generator_block()
    save_artifact(tmp_path / "a", block, build(block), {"kind": "generator"})
    with pytest.raises(BadInput, match="form that the release's files do not know"):
        export_release(tmp_path / "a", tmp_path / "a.bin")


def test_class_that_the_release_does_not_know(tmp_path):
    block = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2, "out_features": 2}}
    save_artifact(tmp_path / "a", block, build(block), {"kind": "generator"})
    with pytest.raises(BadInput, match="holds a Linear"):
        export_release(tmp_path / "a", tmp_path / "a.bin")


def test_own_artifact_reaches_the_release_form(tmp_path, golden, small_generator_block):
    block = small_generator_block(num_prefix=17, grid=[16, 16], dropout=0.0)
    module = golden.randomize(build(block))
    save_artifact(tmp_path / "a", block, module, {"kind": "generator"})
    export_release(tmp_path / "a", tmp_path / "a.bin")
    state = torch.load(tmp_path / "a.bin", weights_only=True)
    assert_same(state, generator_to_release(module.state_dict()))
    again = load_artifact(import_release(tmp_path / "a.bin", tmp_path / "b"))
    assert_same(again.state_dict(), module.state_dict())
