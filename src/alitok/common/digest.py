"""Digests of modules, by which two artifacts are compared."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

# State of a quantizer that matters in training only: no id depends on it.
TRAINING_STATISTICS = ("quantizer.usage",)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def module_digest(module: nn.Module) -> str:
    """Digest of the whole state dict."""
    return state_digest(module.state_dict())


def tokenizer_digest(tokenizer: nn.Module) -> str:
    """Digest of the state that decides the ids: encoder, latent tokens and quantizer.

    It leaves out the decoder and the quantizer's usage statistic, so stage 1 and stage 2 have the same digest.
    """
    return state_digest(
        {
            name: tensor
            for name, tensor in tokenizer.state_dict().items()
            if name.startswith(("encoder.", "quantizer.")) and name not in TRAINING_STATISTICS
        }
    )
