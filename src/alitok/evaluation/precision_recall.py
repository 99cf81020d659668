"""Precision and recall of a set by nearest neighbours in feature space, block by block."""

from collections.abc import Iterator

import torch
from torch import Tensor

from alitok.common.distributed import all_stack, all_sum, rank, world_size
from alitok.common.errors import BadInput

NEIGHBOURS = 3
BLOCK = 2000  # rows and columns; a block of float64 distances is then 32 MB


def precision_recall(
    samples: Tensor, reference: Tensor, neighbours: int = NEIGHBOURS, block: int = BLOCK
) -> dict[str, float]:
    """`precision` and `recall` of samples (M, F) against a reference (R, F) (Kynkaanniemi et al. 2019).

    An image lies in a set if, for one of its members, it is no farther than that member's k-th nearest other member.
    Squared distances in float64; blocks are shared by the processes, each of which holds all features. A collective.

    Raises:
        BadInput: different widths, NaN, or a set of no more than `neighbours` images.
    """
    for name, part in (("samples", samples), ("reference", reference)):
        if len(part) <= neighbours:
            raise BadInput(
                f"Precision and recall need more than {neighbours} images, there are {len(part)} in the {name}."
            )
        if not torch.isfinite(part.sum(dtype=torch.float64)):  # the sum, as it needs no copy of the features
            raise BadInput(f"The features of the {name} hold NaN or infinity: check the images and the extractor.")
    if samples.shape[1] != reference.shape[1]:
        raise BadInput(
            f"Features of width {samples.shape[1]} and {reference.shape[1]} cannot be compared: use one extractor."
        )
    centre = reference.mean(dim=0, dtype=torch.float64)  # near zero, the expansion of the squared distance loses less
    sample_radii = radii(samples, centre, neighbours, block)
    reference_radii = radii(reference, centre, neighbours, block)
    inside = torch.zeros(len(samples), device=samples.device)
    covered = torch.zeros(len(reference), device=samples.device)
    for rows, columns in _mine((i, j) for i in _blocks(samples, block) for j in _blocks(reference, block)):
        distances = squared_distances(samples[rows], reference[columns], centre)
        inside[rows] += (distances <= reference_radii[columns]).any(dim=1)
        covered[columns] += (distances <= sample_radii[rows, None]).any(dim=0)
    return {
        "precision": float((all_sum(inside) > 0).double().mean()),
        "recall": float((all_sum(covered) > 0).double().mean()),
    }


def radii(features: Tensor, centre: Tensor, neighbours: int, block: int) -> Tensor:
    """(M,) float64: the squared distance of each of the features (M, F) to its k-th nearest other one. A collective."""
    nearest = features.new_full((len(features), neighbours), torch.inf, dtype=torch.float64)
    blocks = _blocks(features, block)
    for rows, columns in _mine((i, j) for n, i in enumerate(blocks) for j in blocks[n:]):
        distances = squared_distances(features[rows], features[columns], centre)
        if rows == columns:
            distances.fill_diagonal_(torch.inf)  # an image is no neighbour of itself
        else:
            nearest[columns] = _least(torch.cat([nearest[columns], distances.T], dim=1), neighbours)
        nearest[rows] = _least(torch.cat([nearest[rows], distances], dim=1), neighbours)
    parts = all_stack(nearest)
    return _least(torch.cat(list(parts), dim=1), neighbours).amax(dim=1)


def squared_distances(a: Tensor, b: Tensor, centre: Tensor) -> Tensor:
    """|a_i - b_j|^2, (A, B) float64; what rounding alone can make of 0 is 0, so that copies lie at no distance."""
    a, b = a.double() - centre, b.double() - centre
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
