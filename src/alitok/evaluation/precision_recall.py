"""Precision and recall of a set by nearest neighbors in feature space, block by block."""

from collections.abc import Iterator

import torch
from torch import Tensor

from alitok.common.distributed import all_stack, all_sum, rank, world_size
from alitok.common.errors import BadInput

NEIGHBORS = 3
BLOCK = 2000  # rows and columns; a block of float64 distances takes 32 MB


def precision_recall(
    samples: Tensor, reference: Tensor, neighbors: int = NEIGHBORS, block: int = BLOCK
) -> dict[str, float]:
    """`precision` and `recall` of samples (M, F) against a reference (R, F) (Kynkaanniemi et al. 2019).

    An image lies in a set if it is no farther from some member than that member's k-th nearest other member.
    Squared distances are in float64. Processes share the blocks; each holds all features. A collective.

    Raises:
        BadInput: different widths, NaN, or a set of no more than `neighbors` images.
    """
    for name, part in (("samples", samples), ("reference", reference)):
        if len(part) <= neighbors:
            raise BadInput(
                f"Precision and recall need more than {neighbors} images, there are {len(part)} in the {name}."
            )
        if not torch.isfinite(part.sum(dtype=torch.float64)):  # the sum needs no copy of the features
            raise BadInput(f"The features of the {name} hold NaN or infinity: check the images and the extractor.")
    if samples.shape[1] != reference.shape[1]:
        raise BadInput(
            f"Features of width {samples.shape[1]} and {reference.shape[1]} cannot be compared: use one extractor."
        )
    center = reference.mean(dim=0, dtype=torch.float64)  # the expanded squared distance is more exact near zero
    sample_radii = radii(samples, center, neighbors, block)
    reference_radii = radii(reference, center, neighbors, block)
    inside = torch.zeros(len(samples), device=samples.device)
    covered = torch.zeros(len(reference), device=samples.device)
    for rows, columns in _mine((i, j) for i in _blocks(samples, block) for j in _blocks(reference, block)):
        distances = squared_distances(samples[rows], reference[columns], center)
        inside[rows] += (distances <= reference_radii[columns]).any(dim=1)
        covered[columns] += (distances <= sample_radii[rows, None]).any(dim=0)
    return {
        "precision": float((all_sum(inside) > 0).double().mean()),
        "recall": float((all_sum(covered) > 0).double().mean()),
    }


def radii(features: Tensor, center: Tensor, neighbors: int, block: int) -> Tensor:
    """(M,) float64: squared distance of each row of the features (M, F) to its k-th nearest other. A collective."""
    nearest = features.new_full((len(features), neighbors), torch.inf, dtype=torch.float64)
    blocks = _blocks(features, block)
    for rows, columns in _mine((i, j) for n, i in enumerate(blocks) for j in blocks[n:]):
        distances = squared_distances(features[rows], features[columns], center)
        if rows == columns:
            distances.fill_diagonal_(torch.inf)  # an image is no neighbor of itself
        else:
            nearest[columns] = _least(torch.cat([nearest[columns], distances.T], dim=1), neighbors)
        nearest[rows] = _least(torch.cat([nearest[rows], distances], dim=1), neighbors)
    parts = all_stack(nearest)
    return _least(torch.cat(list(parts), dim=1), neighbors).amax(dim=1)


def squared_distances(a: Tensor, b: Tensor, center: Tensor) -> Tensor:
    """|a_i - b_j|^2, (A, B) float64; values within rounding error of 0 become 0, so that copies have distance 0."""
    a, b = a.double() - center, b.double() - center
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
    distances = torch.addmm(squares, a, b.T, alpha=-2)
    return distances.masked_fill_(distances < squares.mul_(1e-12), 0)


def _least(distances: Tensor, count: int) -> Tensor:
    return distances.topk(count, dim=1, largest=False).values


def _blocks(features: Tensor, block: int) -> list[slice]:
    return [slice(start, min(start + block, len(features))) for start in range(0, len(features), block)]


def _mine(pairs: Iterator[tuple[slice, slice]]) -> Iterator[tuple[slice, slice]]:
    """This process's share of the blocks."""
    return (pair for number, pair in enumerate(pairs) if number % world_size() == rank())
