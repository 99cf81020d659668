import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from alitok.artifacts.release import generator_from_release, generator_to_release
from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.models.generator import Generator

SIZES = {"b": (768, 24), "l": (1024, 24), "xl": (1280, 32)}


@pytest.fixture(scope="module")
def tiny(golden) -> Generator:
    """The release's model at width 128, with its reference weights."""
    module = Generator(64, 10, 17, (16, 16), 128, 3, 4).eval()
    module.load_state_dict(generator_from_release(golden.fill(golden.json("official_ar_tiny_keys"))))
    return module


@pytest.fixture
def small(golden, small_generator_block) -> Generator:
    return golden.randomize(build(small_generator_block()))


@pytest.mark.parametrize("size", SIZES)
def test_parameters_of_the_published_sizes(golden, size):
    with torch.device("meta"):
        module = Generator(4096, 1000, 17, (16, 16), *SIZES[size], 16)
    known = golden.json("official_ar_params")[size]
    theirs = generator_to_release(module.state_dict())
    assert sum(p.numel() for p in module.parameters()) == known["params"]
    assert len(theirs) == known["keys"]
    if size == "b":
        assert {name: list(t.shape) for name, t in theirs.items()} == golden.json("official_ar_b_keys")
    assert generator_from_release(theirs).keys() == module.state_dict().keys()


def test_logits_loss_and_gradients_are_the_releases(golden, tiny):
    expected = golden.arrays("ar_tiny_release")
    ids, classes = expected["ids"], expected["classes"]
    logits = tiny(ids, classes)
    assert_close(logits.detach()[:, ::13], expected["logits_cond"][:, :21], rtol=0, atol=1e-4)
    loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
    assert_close(loss.detach().double(), expected["loss"], rtol=1e-5, atol=0)
    assert (logits.argmax(-1) == ids).double().mean().item() == pytest.approx(float(expected["accuracy"]))
    loss.backward()
    ours = generator_to_release({name: p.grad.norm() for name, p in tiny.named_parameters()})
    norms = golden.json("ar_tiny_release_gradnorms")
    assert ours.keys() == norms.keys()
    for name, norm in norms.items():
        assert float(ours[name]) == pytest.approx(norm, rel=1e-3), name
    tiny.zero_grad()


def test_no_class_is_the_last_label(golden, tiny):
    expected = golden.arrays("ar_tiny_release")
    with torch.no_grad():
        logits = tiny(expected["ids"], torch.full((3,), tiny.num_classes))
    assert_close(logits[:, ::13], expected["logits_uncond"][:, :21], rtol=0, atol=1e-4)
    assert tiny.num_classes + tiny.codebook_size + 1 == expected["none_id"][0]
    assert torch.equal(expected["classes"] + tiny.codebook_size + 1, expected["cond_ids"])


@pytest.mark.parametrize("token", [0, 4, 5, 12, 19])
def test_logits_of_token_i_see_the_tokens_before_i(small, token):
    ids = torch.randint(24, (1, small.num_tokens), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[:, token] = (ids[:, token] + 1) % 24
    with torch.no_grad():
        change = (small(other, torch.tensor([1])) - small(ids, torch.tensor([1]))).abs().amax(-1)[0]
    assert not (change[: token + 1] > 1e-5).any()
    assert (change[token + 1 :] > 1e-5).all()


def test_last_token_is_an_answer_only(small):
    ids = torch.zeros(1, small.num_tokens, dtype=torch.int64)
    other = ids.clone()
    other[:, -1] = 5
    with torch.no_grad():
        assert torch.equal(small(other, torch.tensor([1])), small(ids, torch.tensor([1])))


def test_label_reaches_every_token_but_only_through_values(small):
    """The class token's query and key are zero; its value still counts."""
    ids = torch.zeros(1, small.num_tokens, dtype=torch.int64)
    with torch.no_grad():
        change = (small(ids, torch.tensor([0])) - small(ids, torch.tensor([2]))).abs().amax(-1)
    assert (change > 1e-5).all()


def test_start_of_training(small_generator_block):
    torch.manual_seed(0)
    module = build(small_generator_block(width=64))
    assert not module.output.weight.any()
    assert not module.output.bias.any()
    assert module.embeddings.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert module.blocks[0].mlp.w1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert module.blocks[0].mlp.w1.out_features == 256  # 8/3 x 64 = 170, rounded up
    logits = module.eval()(torch.zeros(1, 21, dtype=torch.int64), torch.tensor([0]))
    assert not logits.any()


def test_dropout_in_training_only(small):
    ids, label = torch.zeros(1, small.num_tokens, dtype=torch.int64), torch.tensor([0])
    with torch.no_grad():
        assert torch.equal(small(ids, label), small(ids, label))
        small.train()
        assert not torch.equal(small(ids, label), small(ids, label))


def test_width_must_divide_into_heads(small_generator_block):
    with pytest.raises(BadInput, match="32 does not divide into 5 heads"):
        build(small_generator_block(heads=5))
