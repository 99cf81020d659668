"""GigaTok's semantic term: its formula, which places it reads, what trains, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import module_of, tiny
from torch import nn

from alitok.common.errors import BadInput
from alitok.ideas.semantic import Semantic
from alitok.ideas.shared.teachers import ClassifierMap, DINOv2, Teacher, VGG16Map
from alitok.models.encoder import Encoder
from alitok.models.quantizer import ClusteredQuantizer
from alitok.models.seams import Decoder
from alitok.models.tokenizer import Tokenizer
from alitok.networks.classifier import Classifier
from alitok.training.checkpoint import read_checkpoint
from alitok.training.launch import run

FLAT = "{class_path: test_semantic.Flat}"
LOSS = ["--model.losses.semantic", f"{{class_path: alitok.ideas.semantic.Semantic, init_args: {{teacher: {FLAT}}}}}"]


class Flat(Teacher):
    """The mean colors of patches of 2 x 2 pixels."""

    channels, stride = 3, 2

    def check(self) -> None:
        return

    def network(self, device: torch.device | str) -> nn.Module:
        return nn.AvgPool2d(2)


def attached(folder: Path, *words: str) -> tuple[Any, Semantic]:
    module = module_of(tiny("tokenizer-stage1", folder, *LOSS, *words))
    term = module.terms["semantic"]
    term.setup("cpu")
    return module.eval(), term


def test_the_formula(tmp_path: Path) -> None:
    module, term = attached(tmp_path)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with module.terms.tapped() as seen, torch.no_grad():
        outputs = seen.join(module.tokenizer(images))
    hidden = outputs["decoder.blocks.0"]  # a buffer token, 4 of the prefix, 16 patches
    assert hidden.shape == (2, 21, 32)
    small = F.interpolate(images, size=(8, 8), mode="bicubic")
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    first, second, third = (term.head[place] for place in (0, 2, 4))
    cosines = []
    with torch.no_grad():
        for image in range(2):
            for row in range(4):
                for column in range(4):
                    patch = small[image, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                    target = ((patch - mean) / std).mean((1, 2))
                    ours = third(F.silu(second(F.silu(first(hidden[image, 5 + 4 * row + column])))))
                    cosines.append((ours @ target) / (ours.norm() * target.norm()))
        torch.testing.assert_close(term({"image": images}, outputs), -torch.stack(cosines).mean())
        torch.testing.assert_close(term.similarity({"image": images}, outputs).flatten(), torch.stack(cosines))


def test_it_reads_the_patches_in_any_decoder(tmp_path: Path) -> None:
    """Of a decoder's block, those places that the image is read from."""
    config = tiny("tokenizer-stage1", tmp_path, *LOSS)
    titok = {"image_size": 32, "patch_size": 8, "num_latents": 20, "code_dim": 4, "width": 32, "depth": 1, "heads": 2}
    other = {"class_path": "alitok.ideas.titok.TiTokDecoder", "init_args": titok}
    for block in (config["model"]["init_args"]["tokenizer"]["init_args"]["decoder"], other):
        config["model"]["init_args"]["tokenizer"]["init_args"]["decoder"] = block
        module = module_of(config)
        decoder, seen = module.tokenizer.decoder, []
        decoder.norm_out.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        decoder.image_head.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        with module.terms.tapped() as taps, torch.no_grad():
            outputs = taps.join(module.eval().tokenizer(torch.rand(1, 3, 32, 32)))
        found = decoder.norm_out(decoder.at_image(outputs["decoder.blocks.0"]))
        torch.testing.assert_close(found, seen[1])


def test_every_decoding_of_a_bottleneck_has_its_own_block(tmp_path: Path) -> None:
    dropper = "{class_path: alitok.ideas.nested_dropout.NestedDropout, init_args: {code_dim: 4}}"
    module, term = attached(tmp_path, "--model.tokenizer.bottleneck", dropper)
    images = torch.rand(2, 3, 32, 32)
    with module.terms.tapped() as seen:
        outputs = seen.join(module.train().tokenizer(images))
    ((_, one),) = outputs["decodings"]
    assert one["decoder.blocks.0"] is outputs["decoder.blocks.0"]
    term({"image": images}, one).backward()
    assert module.tokenizer.encoder.to_code.weight.grad.any()


@pytest.mark.parametrize(
    ("depth", "block", "tap"), [(1, None, 0), (4, None, 0), (12, None, 1), (24, None, 2), (4, 3, 2)]
)
def test_which_block(depth: int, block: int | None, tap: int, tmp_path: Path) -> None:
    with torch.device("meta"):
        module = module_of(tiny("tokenizer-stage1", tmp_path, "--model.tokenizer.decoder.depth", str(depth)))
    term = Semantic(Flat(), block)
    term.attach(module.tokenizer)
    assert term.taps == (f"decoder.blocks.{tap}",)
    shapes = [tuple(layer.weight.shape) for layer in term.head if isinstance(layer, nn.Linear)]
    assert shapes == [(128, 32), (128, 128), (3, 128)]


def test_the_head_trains_and_is_kept_but_is_no_part_of_the_artifact(tmp_path: Path) -> None:
    words = ["--trainer.max_steps", "3", "--trainer.limit_val_batches", "1", "--trainer.val_check_interval", "3"]
    words += ["--trainer.callbacks.grid", "null", "--data.micro_batch", "4"]
    config = tiny("tokenizer-stage1", tmp_path, *LOSS, *words)
    before = module_of(config).heads.state_dict()
    run("fit", config)
    after = read_checkpoint(next((tmp_path / "stage1" / "checkpoints").glob("*.ckpt")))["state_dict"]
    assert all(not torch.equal(value, after[f"heads.{name}"]) for name, value in before.items())
    assert (tmp_path / "stage1" / "artifact" / "model.safetensors").is_file()


def test_the_teachers(tmp_path: Path) -> None:
    Classifier(10, width=4).save(tmp_path / "classifier")
    images = torch.rand(1, 3, 32, 32)
    teachers = [VGG16Map("random:0"), ClassifierMap(str(tmp_path / "classifier"), width=4), DINOv2("random:0")]
    for teacher in teachers:
        teacher.check()
        teacher.setup("cpu")
        features = teacher.features(images.requires_grad_(), 2)
        assert features.shape == (1, 4, teacher.channels)
        assert not features.requires_grad
        assert features.std() > 0
    classifier = Classifier.load(tmp_path / "classifier")
    same = F.interpolate(images.detach(), size=(16, 16), mode="bicubic")
    expected = classifier.body(same * 2 - 1).flatten(2).mT
    torch.testing.assert_close(teachers[1].features(images, 2), expected)


class Bare(Decoder):
    """A decoder that does not define which places of its blocks are patches."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()


def no_blocks() -> Tokenizer:
    return Tokenizer(Encoder(16, 8, 4, 4, 16, 1, 1), ClusteredQuantizer(8, 4), Bare())


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"teacher must be a .*Teacher, not a Linear"):
        Semantic(nn.Linear(1, 1))  # type: ignore[arg-type]
    for model, name in ((no_blocks(), "Bare"), (nn.Linear(1, 1), "Linear")):
        with pytest.raises(BadInput, match=f"reads a block of a tokenizer's decoder, and {name} has no"):
            Semantic(Flat()).attach(model)
    for block in (-1, 0, 2):
        with pytest.raises(BadInput, match=f"the decoder has blocks 1 to 1, not {block}"):
            attached(tmp_path, "--model.losses.semantic.block", str(block))
    with pytest.raises(BadInput, match="make one with `alitok train-classifier`"):
        ClassifierMap(str(tmp_path)).check()
    Classifier(10, width=4).save(tmp_path / "classifier")
    with pytest.raises(BadInput, match="has width 4, not 24; give its width"):
        ClassifierMap(str(tmp_path / "classifier")).setup("cpu")
    with pytest.raises(BadInput, match=r"dl\.fbaipublicfiles\.com/dinov2"):
        DINOv2(str(tmp_path)).check()
