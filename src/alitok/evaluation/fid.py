"""Mean and covariance of features in float64, merged over batches and processes, and the Frechet distance."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alitok.common.distributed import all_sum
from alitok.common.errors import BadInput
from alitok.common.files import atomic_file
from alitok.common.random import stream

GROUPS = 10  # of the jackknife


class FeatureStatistics:
    """Count, mean (F,) and covariance (F, F; N - 1 in the denominator) of feature vectors, in float64.

    The state is the sum of outer products about the mean, so that two sets merge exactly (Chan, Golub & LeVeque 1979).
    It is on the CPU, or on the GPU of the features.
    `count` is None for stored statistics without a count (ADM's references): these can only be compared.
    """

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features
        self.reset()

    @torch.inference_mode(False)  # the state must stay changeable in place, even if features come from inference mode
    def reset(self) -> None:
        self.count: int | None = 0
        self.mean = torch.zeros(self.num_features, dtype=torch.float64)
        self._scatter = torch.zeros(self.num_features, self.num_features, dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        """(F, F) float64.

        Raises:
            BadInput: fewer than two samples.
        """
        if self.count is None:
            return self._scatter
        if self.count < 2:
            raise BadInput(f"A covariance needs at least 2 samples, there are {self.count}: give more images.")
        return self._scatter / (self.count - 1)

    @torch.inference_mode(False)
    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add a batch of features (B, F) of any float type.

        Raises:
            BadInput: a different feature width, or stored statistics without a count.
        """
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise BadInput(
                f"Features have shape {tuple(features.shape)}, these statistics hold width {self.num_features}: "
                "use one extractor throughout."
            )
        if len(features) == 0:
            return
        batch = features.detach().to(features.device if features.is_cuda else "cpu").double()
        mean = batch.mean(dim=0)
        delta, weight = self._grow(len(batch), mean)
        # The shift of the mean is added as one more row, so that a batch costs a single product.
        rows = torch.cat([batch - mean, (delta * weight**0.5)[None]])
        self._scatter.addmm_(rows.T, rows)

    @torch.inference_mode(False)
    def merge(self, other: "FeatureStatistics") -> None:
        """Add the samples of another set of statistics.

        Raises:
            BadInput: a different feature width, or statistics without a count.
        """
        _same_width(self, other)
        if other.count is None:
            raise BadInput("Stored statistics without a sample count cannot be merged: only compared.")
        if other.count:
            delta, weight = self._grow(other.count, other.mean)
            self._scatter += other._scatter.to(delta.device)
            self._scatter.addr_(delta, delta, alpha=weight)

    def _grow(self, count: int, mean: Tensor) -> tuple[Tensor, float]:
        """Update count and mean; return the shift between the two means and the weight of its outer product."""
        if self.count is None:
            raise BadInput("Stored statistics without a sample count cannot grow: only be compared.")
        total = self.count + count
        self.mean, self._scatter = self.mean.to(mean.device), self._scatter.to(mean.device)
        delta, weight = mean - self.mean, self.count * count / total
        self.mean = self.mean + delta * (count / total)
        self.count = total
        return delta, weight

    def reduce(self) -> "FeatureStatistics":
        """The statistics of all processes together, equal on each. Does not change this object. A collective."""
        if self.count is None:
            raise BadInput("Stored statistics without a sample count cannot be reduced over processes.")
        total = int(all_sum(torch.tensor(self.count)))
        result = FeatureStatistics(self.num_features)
        if total == 0:
            return result
        result.count = total
        result.mean = all_sum(self.mean.cpu() * (self.count / total))
        delta = self.mean.cpu() - result.mean
        result._scatter = all_sum(self._scatter.cpu() + self.count * torch.outer(delta, delta))
        return result

    def to_dict(self) -> dict[str, np.ndarray]:
        """Arrays `mu` (F,), `sigma` (F, F) (ADM's names) and, if known, `count`."""
        arrays = {"mu": self.mean.cpu().numpy(), "sigma": self.covariance.cpu().numpy()}
        return arrays if self.count is None else {**arrays, "count": np.asarray(self.count, dtype=np.int64)}

    @classmethod
    def from_dict(
        cls, arrays: Mapping[str, np.ndarray], mean: str = "mu", covariance: str = "sigma", where: str = "statistics"
    ) -> "FeatureStatistics":
        """Statistics from stored arrays, e.g. an ADM reference (`mean="mu_s", covariance="sigma_s"` for sFID).

        Raises:
            BadInput: an array is missing, has a wrong shape, or holds something other than finite numbers.
        """
        missing = [name for name in (mean, covariance) if name not in arrays]
        if missing:
            raise BadInput(f"{where} holds no {' and no '.join(missing)}: give a reference with stored statistics.")
        try:
            mu, sigma = (torch.from_numpy(np.array(arrays[name], dtype=np.float64)) for name in (mean, covariance))
            count = int(arrays["count"]) if "count" in arrays else None
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:  # read from an archive only now
            raise BadInput(f"{where}: {mean} or {covariance} is damaged; make or download it again.") from error
        except (ValueError, TypeError) as error:
            raise BadInput(f"{where}: {mean} and {covariance} must be numbers; make or download it again.") from error
        if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            raise BadInput(
                f"{where}: {mean} has shape {tuple(mu.shape)} and {covariance} {tuple(sigma.shape)}, "
                "expected (F,) and (F, F)."
            )
        if not (torch.isfinite(mu).all() and torch.isfinite(sigma).all()):
            raise BadInput(f"{where}: {mean} or {covariance} holds NaN or infinity; make or download it again.")
        result = cls(len(mu))
        result.count = count
        result.mean = mu
        result._scatter = sigma if result.count is None else sigma * (result.count - 1)
        return result

    def save(self, path: str | Path) -> None:
        """Write an .npz with `mu`, `sigma` and `count`, whole or not at all."""
        arrays: dict[str, Any] = self.to_dict()
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | Path, mean: str = "mu", covariance: str = "sigma") -> "FeatureStatistics":
        """Read what `save` wrote, or a reference of the ADM evaluator (its images are not read).

        Raises:
            BadInput: no such file, no .npz, or missing arrays.
        """
        try:
            file = np.load(path, allow_pickle=False)
        except FileNotFoundError as error:
            raise BadInput(f"No statistics at {path}: give an .npz with mu and sigma.") from error
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(f"{path} is not a readable .npz file: give one with mu and sigma.") from error
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise BadInput(f"{path} is not an .npz archive: give one with mu and sigma.")
        with file:
            return cls.from_dict(file, mean, covariance, where=str(path))


def _same_width(a: FeatureStatistics, b: FeatureStatistics) -> None:
    if a.num_features != b.num_features:
        raise BadInput(
            f"Statistics of {a.num_features} and of {b.num_features} features cannot be put together: "
            "use one extractor for both."
        )


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) in float64 (Dowson & Landau 1982; Heusel et al. 2017).

    Computed by torchmetrics (eigenvalues of the product). Rounding can give a value just below 0 if the covariances
    are singular and equal; 0 is returned then.

    Raises:
        BadInput: different widths, fewer than two samples, or features that are not finite.
    """
    # clean-fid's function passes `disp` to scipy.linalg.sqrtm, which scipy 1.17 deprecates and 1.18 is to remove.
    from torchmetrics.image.fid import _compute_fid

    _same_width(a, b)
    moments = [part.cpu() for statistics in (a, b) for part in (statistics.mean, statistics.covariance)]
    if not all(torch.isfinite(part).all() for part in moments):
        raise BadInput("The features hold NaN or infinity: check the images and the extractor.")
    return max(0.0, float(_compute_fid(*moments)))


def frechet_parts(a: FeatureStatistics, b: FeatureStatistics, name: str = "fid") -> dict[str, float]:
    """The Frechet distance as `name`, and its parts: `NAME_mean`, |mu_a - mu_b|^2, and `NAME_covariance`, the rest.

    The parts show what a change did: AToken (arXiv 2509.14476) finds 87 % of its rFID in the covariance.

    Raises:
        BadInput: as `frechet_distance`.
    """
    whole = frechet_distance(a, b)
    mean = min(whole, float((a.mean.cpu() - b.mean.cpu()).square().sum()))  # rounding, if the rest is 0
    return {name: whole, f"{name}_mean": mean, f"{name}_covariance": whole - mean}


def left_out_distances(features: Tensor, reference: FeatureStatistics) -> list[float]:
    """Frechet distance of features (N, F), then without each of ten groups in turn, for `jackknife_error`."""
    # By chance: groups in the order of the images would each lack some classes.
    order = torch.randperm(len(features), generator=stream("jackknife", len(features)))
    groups = []
    for rows in order.tensor_split(GROUPS):
        statistics = FeatureStatistics(features.shape[1])
        statistics.update(features[rows])
        groups.append(statistics)
    distances = []
    for left_out in range(-1, GROUPS):
        rest = FeatureStatistics(features.shape[1])
        for group, statistics in enumerate(groups):
            if group != left_out:
                rest.merge(statistics)
        distances.append(frechet_distance(rest, reference))
    return distances


def jackknife_error(left_out: list[float]) -> float:
    """Standard error of a number from its values without each of G groups in turn (Efron & Tibshirani 1993, ch. 11)."""
    values = np.asarray(left_out)
    return float(np.sqrt((len(values) - 1) * np.mean((values - values.mean()) ** 2)))
