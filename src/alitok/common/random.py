"""Random numbers that depend on seed, step and image, never on earlier draws."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number


def derive_seed(*keys: int | str) -> int:
    """A 63-bit seed from any number of keys. Equal keys give equal seeds in every process and on every machine."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(*keys: int | str) -> torch.Generator:
    """A new CPU generator seeded by the keys, e.g. `stream(seed, "augment", position)`."""
    return torch.Generator().manual_seed(derive_seed(*keys))


def reseed(*keys: int | str) -> None:
    """Seeds torch's global generators (all devices) for one step, so that dropout depends on the keys alone."""
    torch.manual_seed(derive_seed(*keys))


def streams_by_content(name: str, images: Tensor) -> list[torch.Generator]:
    """A generator for each image (B, ...) in [0, 1] that depends on its pixels alone. Waits for the device.

    For validation: its numbers must not change with the size of a batch.
    """
    pixels = (images.float() * 255).round().to(torch.uint8).cpu()
    return [stream(name, hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest()) for image in pixels]


def splitmix(keys: Tensor, count: int) -> Tensor:
    """Random bits (..., count) int64: the first `count` numbers of SplitMix64 (Steele et al. 2014) for each key (...).

    A number depends on its key and place alone. Integers are exact, so every device gives the same ones.
    """
    bits = keys[..., None] + torch.arange(1, count + 1, device=keys.device) * GOLDEN
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        bits = (bits ^ _shifted(bits, shift)) * factor
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shifts to the right and fills with zeros; `>>` would repeat the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def open_uniforms(bits: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random int64 -> numbers above 0 and below 1, evenly spaced: 2^52 of them, or 2^23 in float32."""
    kept = 52 if dtype == torch.float64 else 23
    return (_shifted(bits, 64 - kept).to(dtype) + 0.5) * 2.0**-kept


@dataclass(frozen=True)
class Step:
    """The step of a run, and the micro-batch's images in it. All random numbers of the step depend on it alone.

    It is on the host, so that nothing waits for a device to read it.

    Attributes:
        seed: seed of the run.
        number: number of the step, from 0.
        total: steps of the run.
        size: images of the global batch.
        places: places of the micro-batch's images in the global batch, 0..size-1.
    """

    seed: int
    number: int
    total: int
    size: int
    places: range

    @classmethod
    def alone(cls, images: int) -> "Step":
        """The first step of a run whose global batch is these images, for calls outside a run."""
        return cls(0, 0, 1, images, range(images))

    @property
    def progress(self) -> float:
        """Share of the run that is done, 0..1."""
        return self.number / self.total

    def derive(self, name: str, *place: int) -> int:
        """A 63-bit number for this step, or for one place of its global batch."""
        return derive_seed(self.seed, name, self.number, *place)

    def stream(self, name: str, *place: int) -> torch.Generator:
        """A new generator for this step, or for one place of its global batch."""
        return stream(self.seed, name, self.number, *place)
