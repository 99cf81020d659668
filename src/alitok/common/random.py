"""Random numbers as a function of seed, step and image, never of what was drawn before."""

import hashlib
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Step:
    """Which images of which step of a run a micro-batch holds. All that is random in the step depends on it alone.

    It lies on the host, so nothing waits for a device to read it.

    Attributes:
        seed: of the run.
        number: of the step, from 0.
        total: steps of the run.
        size: images of the global batch.
        places: of the micro-batch's images in the global batch, 0..size-1.
    """

    seed: int
    number: int
    total: int
    size: int
    places: range

    @classmethod
    def alone(cls, images: int) -> "Step":
        """The first step of a run whose global batch is these images: for calls outside of a run."""
        return cls(0, 0, 1, images, range(images))

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1."""
        return self.number / self.total

    def derive(self, name: str, *place: int) -> int:
        """A 63-bit number for this step, or for one place of its global batch."""
        return derive_seed(self.seed, name, self.number, *place)

    def stream(self, name: str, *place: int) -> torch.Generator:
        """A generator of its own for this step, or for one place of its global batch."""
        return stream(self.seed, name, self.number, *place)
