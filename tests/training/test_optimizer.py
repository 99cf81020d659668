"""Which of the generator's weights decay."""

import torch

from alitok.models.generator import Generator
from alitok.training.optimizer import adamw, generator_decays


def test_the_generator_decays_exactly_the_recipes_weights() -> None:
    with torch.device("meta"):
        generator = Generator(4096, 1000, 17, (16, 16), 768, 2, 16)
    optimizer = adamw(generator.named_parameters(), 0.03, (0.9, 0.96), generator_decays)
    groups = {group["weight_decay"]: set(group["param_names"]) for group in optimizer.param_groups}
    per_block = ("attention.qkv", "attention.proj", "mlp.w1", "mlp.w2", "mlp.w3")
    expected = {f"blocks.{i}.{name}.weight" for i in range(2) for name in per_block} | {"output.weight"}
    assert groups[0.03] == expected
    assert groups[0.0] == {name for name, _ in generator.named_parameters()} - expected
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.96)
