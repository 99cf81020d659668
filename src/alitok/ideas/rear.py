"""reAR: the generator reads a noisy past and regresses the vectors of the codes (arXiv 2510.04450)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.devices import send
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.losses.terms import Batch, LossTerm, Outputs
from alitok.models.generator import Generator
from alitok.models.seams import Corruption, Quantizer


class NoisyContext(Corruption):
    """Replaces each input token of the generator by a uniformly random one with probability eps.

    eps is uniform in 0..max(0, start (1 - progress / end)), drawn per image. All sub-codes of a replaced token change.
    All draws depend only on seed, step and the image's place in the global batch.

    Args:
        start: largest eps at the start of the run, 0..1.
        end: share of the run after which the context is clean, above 0.

    Raises:
        BadInput: a value outside these bounds.
    """

    def __init__(self, start: float = 1.0, end: float = 0.75) -> None:
        if not 0 <= start <= 1 or end <= 0:
            raise BadInput(f"NoisyContext takes start in 0..1 and end above 0, not {start} and {end}.")
        self.start, self.end = start, end

    def largest(self, progress: float) -> float:
        """The largest eps at this share of the run."""
        return max(0.0, self.start * (1 - progress / self.end))

    def __call__(self, inputs: Tensor, codebook_size: int, step: Step) -> Tensor:
        """ids (B, N) or (B, N, S) -> ids of the same shape."""
        largest = self.largest(step.progress)
        if largest == 0:
            return inputs
        masks, codes = [], []
        for place in step.places:
            generator = step.stream("noisy context", place)
            eps = largest * torch.rand(1, generator=generator)
            masks.append(torch.rand(inputs.shape[1], generator=generator) < eps)
            codes.append(torch.randint(codebook_size, inputs.shape[1:], generator=generator))
        replaced = torch.stack(masks).view(*inputs.shape[:2], *[1] * (inputs.ndim - 2))
        return torch.where(send(replaced, inputs.device), send(torch.stack(codes), inputs.device), inputs)


class CodeVector(LossTerm):
    """1 - cosine between a small network's output for a hidden state and the vector of a true code.

    The network (linear, GELU, linear) trains with the generator and is not in the artifact. The vectors come from the
    frozen quantizer that made the tokens.

    Args:
        token: "current": the state at input token i is aligned with the true token i, even if the input was replaced.
            "next": the state that predicts token i is aligned with token i.
        depth: share of the blocks after which the states are read: 0 right after the embedding's dropout, 0.75 after
            15 of 20 blocks. Rounded down to whole blocks, but at least one block if above 0.
        code_dim: D of the tokenizer.
        hidden: width inside the network.

    Raises:
        BadInput: an unknown `token`, or a depth outside 0..1.
    """

    needs_codebook = True

    def __init__(self, token: Literal["current", "next"], depth: float, code_dim: int, hidden: int = 2048) -> None:
        if token not in ("current", "next"):
            raise BadInput(f"CodeVector: token must be current or next, not {token!r}.")
        if not 0 <= depth <= 1:
            raise BadInput(f"CodeVector: depth is a share of the blocks in 0..1, not {depth}.")
        self.token, self.depth, self.code_dim, self.hidden = token, depth, code_dim, hidden
        self._quantizer: Quantizer | None = None

    def attach(self, model: nn.Module) -> None:
        """Choose the tap and make the network.

        Raises:
            BadInput: the model is no causal generator.
        """
        if not isinstance(model, Generator):
            raise BadInput(f"CodeVector is a term of a generator's training, not of {type(model).__name__}'s.")
        if not model.causal:
            raise BadInput(f"CodeVector reads a causal generator, and {type(model).__name__} is none: leave reAR out.")
        blocks = int(self.depth * len(model.blocks)) or int(self.depth > 0)
        self.taps = [f"blocks.{blocks - 1}" if blocks else "dropout"]
        width = model.embeddings.embedding_dim
        self.head = nn.Sequential(nn.Linear(width, self.hidden), nn.GELU(), nn.Linear(self.hidden, self.code_dim))

    def use_codebook(self, quantizer: Quantizer) -> None:
        """Store the quantizer.

        Raises:
            BadInput: its vectors do not have `code_dim` channels.
        """
        first = torch.zeros(1, 1, *[quantizer.sub_codes] * (quantizer.sub_codes > 1), dtype=torch.int64)
        device = next((tensor.device for tensor in [*quantizer.parameters(), *quantizer.buffers()]), first.device)
        channels = quantizer.lookup(first.to(device)).shape[-1]
        if channels != self.code_dim:
            raise BadInput(
                f"CodeVector predicts {self.code_dim} channels, the tokenizer's codes have {channels}:"
                f" set code_dim to {channels}."
            )
        self._quantizer = quantizer

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        assert self._quantizer is not None
        assert self.head is not None
        states, targets = outputs[self.taps[0]].float(), outputs["targets"]
        if self.token == "current":  # state 0 belongs to the class label, state i + 1 to input token i
            states, targets = states[:, 1:], targets[:, :-1]
        with torch.no_grad():
            vectors = self._quantizer.lookup(targets)
        return (1 - F.cosine_similarity(self.head(states), vectors, dim=-1)).mean()
