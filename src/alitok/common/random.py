"""Random numbers as a function of seed, step and image, never of what was drawn before."""

import hashlib

import torch


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed from any number of keys; equal keys give equal seeds, in every process and on every machine."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(*keys: int | str) -> torch.Generator:
    """A CPU generator of its own for the given keys, e.g. `stream(seed, "augment", position)`."""
    return torch.Generator().manual_seed(derive_seed(*keys))


def reseed(*keys: int | str) -> None:
    """Seeds torch's global generators (all devices) for one step: dropout is then a function of the keys alone."""
    torch.manual_seed(derive_seed(*keys))
