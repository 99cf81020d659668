"""CHD, the distance between the codes of two sets of images: it needs only the tokenizer, and few images."""

from collections.abc import Iterable

import torch
from torch import Tensor

from alitok.common.distributed import all_or_none, all_stack
from alitok.common.errors import BadInput
from alitok.evaluation.image_sets import ImageSet, Reader
from alitok.evaluation.measure import Progress
from alitok.models.tokenizer import Tokenizer


class CodeHistograms:
    """Counts of each code and of each pair of neighboring codes, per sub-code.

    A pair is (token i, token i + 1) in the order of the sequence. Counts merge over processes.

    Args:
        codebook_size: V.
        sub_codes: S.
    """

    def __init__(self, codebook_size: int, sub_codes: int = 1) -> None:
        self.codebook_size, self.sub_codes = codebook_size, sub_codes
        # per sub-code: keys in ascending order and their counts; a table of V^2 counts would be too large
        empty = torch.zeros(0, dtype=torch.int64)
        self._codes = [(empty, empty)] * sub_codes
        self._pairs = [(empty, empty)] * sub_codes

    @torch.no_grad()
    def update(self, ids: Tensor) -> None:
        """Add the ids of images, (B, N) or (B, N, S).

        Raises:
            BadInput: images of one token, which have no pairs.
        """
        if ids.shape[1] < 2:
            raise BadInput("CHD compares neighboring tokens, and these images have one token only.")
        for sub, own in enumerate(ids.cpu().long().view(*ids.shape[:2], self.sub_codes).unbind(-1)):
            pairs = own[:, :-1] * self.codebook_size + own[:, 1:]
            self._codes[sub] = _counted([self._codes[sub], (own.flatten(), None)])
            self._pairs[sub] = _counted([self._pairs[sub], (pairs.flatten(), None)])

    def reduce(self) -> "CodeHistograms":
        """The histograms of all processes together, equal on each. A collective."""
        result = CodeHistograms(self.codebook_size, self.sub_codes)
        for kept, own in ((result._codes, self._codes), (result._pairs, self._pairs)):
            for sub, (keys, counts) in enumerate(own):
                lengths = all_stack(torch.tensor(len(keys))).tolist()
                padded = torch.zeros(2, max(lengths), dtype=torch.int64)
                padded[0, : len(keys)], padded[1, : len(keys)] = keys, counts
                parts = zip(all_stack(padded), lengths, strict=True)
                kept[sub] = _counted([(part[0, :length], part[1, :length]) for part, length in parts])
        return result

    def distance(self, other: "CodeHistograms") -> float:
        """CHD in 0..1: the mean of the Hellinger distances of codes and of pairs, over all sub-codes.

        H(p, q) = sqrt(1 - sum sqrt(p q)) (Jia et al., "1d-Distance", CVPR 2026), made for 1D tokenizers. It depends on
        the number of images, so compare sets of equal size.

        Raises:
            BadInput: a set is empty, or has other codes.
        """
        sizes = [(one.codebook_size, one.sub_codes) for one in (self, other)]
        if sizes[0] != sizes[1]:
            raise BadInput(f"CHD compares the same codes, not {sizes[0]} and {sizes[1]} (codes, sub-codes).")
        mine, theirs = self._codes + self._pairs, other._codes + other._pairs
        if not all(len(keys) for keys, _ in (*mine, *theirs)):
            raise BadInput("CHD of no tokens is undefined: give images.")
        return sum(_hellinger(a, b) for a, b in zip(mine, theirs, strict=True)) / len(mine)


Histogram = tuple[Tensor, Tensor]


def _counted(parts: Iterable[tuple[Tensor, Tensor | None]]) -> Histogram:
    """Merge histograms into one with ascending keys. If counts are None, each key counts once."""
    parts = list(parts)
    keys = torch.cat([part for part, _ in parts])
    weights = torch.cat([torch.ones_like(part) if counts is None else counts for part, counts in parts])
    unique, places = keys.unique(return_inverse=True)
    return unique, torch.zeros_like(unique).scatter_add_(0, places, weights)


def _hellinger(a: Histogram, b: Histogram) -> float:
    keys, counts = b
    place = torch.searchsorted(keys, a[0]).clamp(max=len(keys) - 1)
    both = keys[place] == a[0]
    p, q = a[1].double() / a[1].sum(), counts.double() / counts.sum()
    return float((1 - (p[both] * q[place[both]]).sqrt().sum()).clamp_min(0).sqrt())


def check_size(images: ImageSet, tokenizer: Tokenizer) -> None:
    """Raise BadInput if the images' size is not the tokenizer's."""
    if images.size != tokenizer.image_size:
        raise BadInput(
            f"{images.name} has images of {images.size} pixels, and the tokenizer of CHD takes {tokenizer.image_size}."
        )


def code_histograms(
    images: ImageSet, tokenizer: Tokenizer, batch: int = 32, progress: Progress = iter
) -> CodeHistograms:
    """The histograms of a set; each process reads its share. A collective.

    Raises:
        BadInput: images whose size is not the tokenizer's, or one that cannot be used.
    """
    check_size(images, tokenizer)
    found = CodeHistograms(tokenizer.codebook_size, tokenizer.sub_codes)
    device = next(tokenizer.parameters()).device
    with all_or_none(), torch.inference_mode():
        for _, pixels in progress(Reader(images, batch)):
            found.update(tokenizer.encode(pixels.to(device).float() / 255))
    return found.reduce()
