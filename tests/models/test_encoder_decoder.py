import pytest
import torch
from einops import rearrange

from alitok.common.build import build
from alitok.models.decoder import Decoder
from alitok.models.encoder import Encoder
from alitok.models.seams import Bottleneck, Decoding
from alitok.models.tokenizer import Tokenizer
from alitok.models.transformer import Init

PREFIX, GRID, TOKENS = 5, 4, 21  # of the small tokenizer


@pytest.fixture
def make(golden, small_tokenizer_block):
    def make(stage: int, **decoder) -> Tokenizer:
        return golden.randomize(build(small_tokenizer_block(stage, **decoder)))

    return make


def patches(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Outputs of one image, (tokens, numbers of a patch): first those of the strip, if there is one."""
    parts = [outputs[name] for name in ("prefix", "image") if name in outputs]
    rows = [rearrange(part, "1 c (h p) (w q) -> (h w) (c p q)", p=8, q=8) for part in parts]
    return torch.cat(rows)


def moved_by(decoder: Decoder, latents: torch.Tensor, token: int) -> torch.Tensor:
    """Which output patches change with latent `token`."""
    other = latents.clone()
    other[:, token] += 1
    with torch.no_grad():
        change = patches(decoder(other)) - patches(decoder(latents))
    return change.abs().amax(1) > 1e-5


@pytest.mark.parametrize("token", [0, 3, PREFIX - 1, PREFIX, 13, TOKENS - 1])
def test_stage1_output_i_sees_tokens_up_to_i(make, token):
    moved = moved_by(make(1).decoder, torch.randn(1, TOKENS, 8), token)
    assert len(moved) == TOKENS
    assert not moved[:token].any()
    assert moved[token:].all()


@pytest.mark.parametrize("token", [0, PREFIX, TOKENS - 1])
def test_stage2_output_sees_every_token(make, token):
    moved = moved_by(make(2).decoder, torch.randn(1, TOKENS, 8), token)
    assert len(moved) == GRID**2
    assert moved.all()


def test_paper_stage2_leaves_the_prefix_out(make):
    decoder = make(2, drop_prefix=True).decoder
    latents = torch.randn(1, TOKENS, 8)
    assert not moved_by(decoder, latents, PREFIX - 1).any()
    assert moved_by(decoder, latents, PREFIX).all()


def test_encoder_lets_every_latent_see_every_patch(make):
    encoder = make(1).encoder
    images = torch.rand(1, 3, 32, 32)
    other = images.clone()
    other[:, :, -8:, -8:] = 1 - other[:, :, -8:, -8:]
    with torch.no_grad():
        change = (encoder(other) - encoder(images)).abs().amax(-1)
    assert change.shape == (1, TOKENS)
    assert (change > 1e-5).all()


def test_outputs_by_name(make):
    images = torch.rand(2, 3, 32, 32)
    model = make(1)
    with torch.no_grad():
        outputs = model(images)
    assert outputs["image"].shape == images.shape
    assert outputs["prefix"].shape == (2, 3, 8, 8 * PREFIX)
    assert outputs["latents"].shape == (2, TOKENS, 8)
    assert outputs["ids"].shape == (2, TOKENS)
    assert outputs["ids"].dtype == torch.int64
    assert outputs["statistics"] is None  # eval mode
    assert 0 <= outputs["image"].min() <= outputs["image"].max() <= 1
    assert torch.equal(model.encode(images), outputs["ids"])
    assert model.decode(outputs["ids"]).shape == images.shape
    assert (model.num_tokens, model.codebook_size, model.image_size) == (TOKENS, 24, 32)


def test_bottleneck_acts_in_training_only(make):
    class Zero(Bottleneck):
        def forward(self, tokens, quantizer, step):
            return [Decoding(latents=torch.zeros_like(tokens.decodable))]

    images = torch.rand(1, 3, 32, 32)
    model = make(1)
    with torch.no_grad():
        plain = model(images)["image"]
        model.bottleneck = Zero()
        assert torch.equal(model.eval()(images)["image"], plain)
        assert not torch.allclose(model.train()(images)["image"], plain)


def test_start_of_training():
    torch.manual_seed(0)
    encoder = Encoder(64, 16, 20, 8, 128, 2, 2)
    assert encoder.latent_tokens.std().item() == pytest.approx(128**-0.5, rel=0.1)
    assert encoder.patch_positions.std().item() == pytest.approx(128**-0.5, rel=0.1)
    assert encoder.blocks[0].attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert encoder.patch_embed.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not encoder.blocks[1].mlp[0].bias.any()
    assert encoder.norm_in.weight.eq(1).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_prefix": 0, "prefix_head": True}, "num_prefix > 0"),
        ({"prefix_head": True, "drop_prefix": True}, "drop_prefix false"),
        ({"heads": 3}, "64 does not divide into 3 heads"),
    ],
)
def test_sizes_that_do_not_fit(arguments, words):
    sizes = {"image_size": 32, "patch_size": 8, "num_prefix": 4, "code_dim": 8, "width": 64, "depth": 1, "heads": 1}
    with pytest.raises(ValueError, match=words):
        Decoder(**{**sizes, "causal": True, **arguments})


def test_image_must_divide_into_patches():
    with pytest.raises(ValueError, match="30 does not divide into patches of 8"):
        Encoder(30, 8, 4, 8, 64, 1, 1)


@pytest.mark.parametrize(("init", "own"), [("local", 3), ("fan-in", 0), ("paper", 0)])
def test_only_a_local_start_reads_each_patch_into_its_own_latent(init: Init, own: int) -> None:
    torch.manual_seed(0)
    encoder = Encoder(32, 8, 20, 8, 64, 2, 4, init=init)
    hits = 0
    images = torch.rand(1, 3, 32, 32)
    for patch in (0, 5, 15):
        y, x = divmod(patch, 4)
        other = images.clone()
        other[:, :, y * 8 : y * 8 + 8, x * 8 : x * 8 + 8] = torch.rand(1, 3, 8, 8)
        with torch.no_grad():
            change = (encoder(images) - encoder(other)).norm(dim=-1)[0, 4:]
        hits += int(change.argmax()) == patch
    assert hits == own


def test_gray_is_nothing_to_a_fan_in_start():
    encoder = Encoder(32, 8, 16, 8, 64, 1, 1, init="fan-in")
    assert encoder.patch_embed(torch.full((1, 3, 32, 32), 0.5)).abs().max() < 1e-5
    assert encoder.patch_embed.weight.std().item() == pytest.approx(3 / (3 * 8 * 8) ** 0.5, rel=0.02)


def test_a_local_start_has_patches_for_all_prefix_tokens():
    from alitok.models.encoder import Encoder

    for latents in (15, 16, 32):
        assert Encoder(32, 8, latents, 8, 32, 1, 1, init="local").num_latents == latents
    with pytest.raises(ValueError, match="num_latents must be at most twice the 16 patches, not 33"):
        Encoder(32, 8, 33, 8, 32, 1, 1, init="local")


def test_a_bottleneck_that_changes_the_shape_unsaid_is_named(make) -> None:
    class Half(Bottleneck):
        def forward(self, tokens, quantizer, step):
            return [Decoding(latents=tokens.decodable[:, :5])]

    tokenizer = make(1)
    tokenizer.bottleneck = Half()
    with pytest.raises(ValueError, match=r"Half made \(1, 5, \d+\) of \(1, 21, \d+\): it must keep the shape"):
        tokenizer.train()(torch.rand(1, 3, tokenizer.image_size, tokenizer.image_size))
