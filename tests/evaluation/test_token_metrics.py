import math

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.evaluation.tokens import CodebookUsage, TokenAccuracy, replace_tokens


def test_codebook_usage_by_hand() -> None:
    metric = CodebookUsage(8)
    metric.update(torch.tensor([[0, 1], [0, 1]]))
    metric.update(torch.tensor([[2, 2]]))
    entropy = -3 * (1 / 3) * math.log(1 / 3)
    assert metric.compute() == {"codebook_usage": 3 / 8, "codebook_perplexity": pytest.approx(math.exp(entropy))}
    metric.reset()
    metric.update(torch.arange(8).view(2, 4))
    assert metric.compute() == {"codebook_usage": 1.0, "codebook_perplexity": pytest.approx(8.0)}


def test_sub_codes_are_counted_apart() -> None:
    metric = CodebookUsage(4, sub_codes=2)
    metric.update(torch.tensor([[[0, 3], [0, 2]]]))
    assert metric.counts.tolist() == [[2, 0, 0, 0], [0, 0, 1, 1]]
    assert metric.compute() == {"codebook_usage": 3 / 8, "codebook_perplexity": pytest.approx(1.5)}


def test_codebook_failures() -> None:
    metric = CodebookUsage(4)
    with pytest.raises(BadInput, match="no tokens"):
        metric.compute()
    for ids in ([[4]], [[-1]]):
        with pytest.raises(BadInput, match="holds 4"):
            metric.update(torch.tensor(ids))
    with pytest.raises(BadInput, match="sub-codes"):
        CodebookUsage(4, sub_codes=2).update(torch.zeros(1, 3, dtype=torch.long))


def test_accuracy_is_weighted_by_count_and_told_by_position() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 5, 6, generator=generator)
    ids = torch.randint(0, 6, (7, 5), generator=generator)
    metric = TokenAccuracy(num_tokens=5)
    metric.update(logits[:2], ids[:2])
    metric.update(logits[2:], ids[2:])
    hits = (logits.argmax(dim=-1) == ids).double()
    nats = -logits.double().log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0]
    assert metric.compute() == pytest.approx({"token_accuracy": hits.mean().item(), "token_nats": nats.mean().item()})
    accuracy, position_nats = metric.by_position()
    torch.testing.assert_close(accuracy, hits.mean(dim=0))
    torch.testing.assert_close(position_nats, nats.mean(dim=0), rtol=1e-6, atol=1e-6)
    metric.reset()
    with pytest.raises(BadInput, match="no tokens"):
        metric.compute()


def test_accuracy_is_of_sub_codes_and_nats_of_whole_tokens() -> None:
    logits = torch.full((1, 2, 2, 3), -50.0)
    logits[..., 0] = 50.0
    metric = TokenAccuracy(num_tokens=2)
    metric.update(logits, torch.tensor([[[0, 0], [0, 1]]]))
    assert metric.compute() == {"token_accuracy": 0.75, "token_nats": pytest.approx(50.0)}
    assert metric.by_position()[0].tolist() == [1.0, 0.5]
    assert metric.by_position()[1].tolist() == pytest.approx([0.0, 100.0])


def test_accuracy_refuses_shapes_that_do_not_fit() -> None:
    metric = TokenAccuracy(num_tokens=5)
    for logits, ids in (((2, 5, 3), (2, 4)), ((2, 4, 3), (2, 4)), ((10, 3), (10,))):
        with pytest.raises(BadInput, match="do not fit"):
            metric.update(torch.zeros(logits), torch.zeros(ids, dtype=torch.long))


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 2)])
def test_a_tenth_of_the_tokens_is_replaced_by_the_number_of_the_picture(shape: tuple[int, ...]) -> None:
    ids = torch.full(shape, -1)
    read = replace_tokens(ids, list(range(40)), 7)
    changed = (read >= 0).view(40, 50, -1)
    assert changed.any(2).equal(changed.all(2))  # a token's sub-codes together
    assert 0.07 < changed.double().mean() < 0.13
    assert read.max() == 6
    again = replace_tokens(ids[:2], [39, 3], 7)
    assert again.equal(read[[39, 3]])
