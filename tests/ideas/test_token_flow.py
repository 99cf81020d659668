"""TokenFlow's shared index: which code it takes, what the decoder and the term get, and what it refuses."""

import pytest
import torch
from test_semantic import Flat
from torch import nn

from alitok.common.digest import module_digest
from alitok.common.errors import BadInput
from alitok.ideas.token_flow import SemanticHalf, SharedIndexQuantizer
from alitok.models.decoder import Decoder
from alitok.models.encoder import Encoder
from alitok.models.tokenizer import Tokenizer


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_index_is_that_of_both_distances_together(weight: float) -> None:
    torch.manual_seed(0)
    quantizer = SharedIndexQuantizer(16, 3, 5, pixel_weight=weight).eval()
    nn.init.normal_(quantizer.codebook.weight)
    latents = torch.randn(2, 7, 8)
    found = quantizer(latents)
    semantic, pixel = unit(quantizer.codebook.weight[:, :3]), unit(quantizer.codebook.weight[:, 3:])
    for b in range(2):
        for n in range(7):
            s, p = unit(latents[b, n, :3]), unit(latents[b, n, 3:])
            distance = ((s - semantic) ** 2).sum(1) + weight * ((p - pixel) ** 2).sum(1)
            own = int(distance.argmin())
            assert found.ids[b, n] == own
            torch.testing.assert_close(found.quantized[b, n], torch.cat([semantic[own], pixel[own]]))
    torch.testing.assert_close(quantizer.lookup(found.ids), found.quantized)
    torch.testing.assert_close(found.extra["semantic"], found.quantized[..., :3])
    torch.testing.assert_close(quantizer.ids(latents), found.ids)


def test_the_weight_decides_which_half_counts() -> None:
    """A latent whose halves are those of two different codes."""
    ids = []
    for weight in (0.01, 100.0):
        quantizer = SharedIndexQuantizer(2, 2, 2, pixel_weight=weight).eval()
        quantizer.codebook.weight.data = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
        ids.append(int(quantizer(torch.tensor([[[1.0, 0.0, 0.0, 1.0]]])).ids))
    assert ids == [0, 1]


def test_gradients_reach_each_half_and_training_moves_unused_codes() -> None:
    torch.manual_seed(0)
    quantizer = SharedIndexQuantizer(16, 3, 5).train()
    latents = torch.randn(2, 7, 8, requires_grad=True)
    found = quantizer(latents)
    found.extra["semantic"].square().mul(torch.arange(3.0)).sum().backward()
    assert latents.grad[..., :3].any()
    assert not latents.grad[..., 3:].any()
    before = quantizer.codebook.weight.clone()
    quantizer.update(found.statistics)
    unused = found.statistics.count == 0
    assert unused.any()
    moved = (quantizer.codebook.weight != before).any(1)
    assert moved[unused].all()


def test_the_term_is_one_minus_the_cosine() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer(
        Encoder(16, 4, 17, 8, 16, 1, 1), SharedIndexQuantizer(16, 3, 5), Decoder(16, 4, 1, 8, 16, 1, 1, causal=False)
    )
    term = SemanticHalf(Flat(), 3, prefix=1)
    term.attach(tokenizer)
    term.setup("cpu")
    images = torch.rand(2, 3, 16, 16)
    outputs = tokenizer(images)
    features = term.teacher.features(images, 4)
    projected = term.head(outputs["semantic"][:, 1:])
    expected = 1 - (unit(projected) * unit(features)).sum(-1).mean()
    torch.testing.assert_close(term({"image": images}, outputs), expected)
    with pytest.raises(BadInput, match="reads 'semantic' of an encoder and its quantizer"):
        term({"image": images}, tokenizer(images, ids=outputs["ids"]))


def test_what_it_refuses_and_what_a_digest_tells_apart() -> None:
    for arguments in ((0, 4, 1.0), (4, 0, 1.0), (4, 4, 0.0)):
        with pytest.raises(BadInput, match="two halves of 1 or more channels"):
            SharedIndexQuantizer(8, *arguments)
    with pytest.raises(BadInput, match="set the encoder's code_dim to 8"):
        SharedIndexQuantizer(8, 4, 4)(torch.zeros(1, 2, 6))
    quantizers = [SharedIndexQuantizer(8, *halves) for halves in ((4, 4, 1.0), (3, 5, 1.0), (4, 4, 0.5))]
    for quantizer in quantizers:
        quantizer.codebook.weight.data.fill_(1.0)
    assert len({module_digest(quantizer) for quantizer in quantizers}) == 3
