import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import linalg

from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.evaluation.fid import (
    FeatureStatistics,
    frechet_distance,
    frechet_parts,
    jackknife_error,
    left_out_distances,
)
from alitok.evaluation.reference import read_about


def features(count: int, width: int = 24, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing + 100.0 + seed


def of(values: torch.Tensor) -> FeatureStatistics:
    statistics = FeatureStatistics(values.shape[1])
    statistics.update(values)
    return statistics


def test_batches_and_merges_equal_one_pass_and_numpy() -> None:
    values = features(301)
    batched = FeatureStatistics(24)
    for batch in values.split(50):
        batched.update(batch)
    merged = of(values[:7])
    merged.merge(of(values[7:250]))
    merged.merge(FeatureStatistics(24))
    merged.merge(of(values[250:]))
    for statistics in (of(values), batched, merged, batched.reduce()):
        assert statistics.count == 301
        np.testing.assert_allclose(statistics.mean, values.mean(dim=0), rtol=1e-12)
        np.testing.assert_allclose(statistics.covariance, np.cov(values.numpy().T), rtol=1e-10, atol=1e-10)


def test_reset_and_empty_batch() -> None:
    statistics = of(features(9))
    statistics.update(torch.zeros(0, 24))
    assert statistics.count == 9
    statistics.reset()
    assert statistics.count == 0


def test_frechet_distance_agrees_with_independent_formula_and_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    import cleanfid.fid
    from torchmetrics.image.fid import FrechetInceptionDistance

    x, y = features(400), features(300, seed=1)
    value = frechet_distance(of(x), of(y))

    mean_x, mean_y = x.mean(dim=0).numpy(), y.mean(dim=0).numpy()
    cov_x, cov_y = np.cov(x.numpy().T), np.cov(y.numpy().T)
    root = linalg.sqrtm(cov_x)
    cross = linalg.eigvalsh(root @ cov_y @ root)
    expected = np.sum((mean_x - mean_y) ** 2) + np.trace(cov_x) + np.trace(cov_y) - 2 * np.sqrt(cross).sum()
    assert value == pytest.approx(expected, rel=1e-9)

    class Identity(torch.nn.Module):
        num_features = 24

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    metric = FrechetInceptionDistance(feature=Identity())
    metric.set_dtype(torch.float64)
    metric.update(x, real=True)
    metric.update(y, real=False)
    assert value == pytest.approx(float(metric.compute()), rel=1e-6)

    # clean-fid asks sqrtm for an error estimate by an argument that newer scipy no longer has.
    sqrtm = linalg.sqrtm
    monkeypatch.setattr(cleanfid.fid.linalg, "sqrtm", lambda a, disp=True: sqrtm(a) if disp else (sqrtm(a), 0.0))
    assert value == pytest.approx(cleanfid.fid.frechet_distance(mean_x, cov_x, mean_y, cov_y), rel=1e-9)


def test_frechet_distance_of_known_gaussians() -> None:
    a = FeatureStatistics.from_dict({"mu": np.zeros(2), "sigma": np.diag([1.0, 4.0])})
    b = FeatureStatistics.from_dict({"mu": np.array([3.0, 0.0]), "sigma": np.diag([9.0, 4.0])})
    assert frechet_distance(a, b) == pytest.approx(9 + (3 - 1) ** 2, rel=1e-12)


def test_its_parts() -> None:
    a, b = of(features(200)), of(features(150) * 1.5 + 0.3)
    parts = frechet_parts(a, b, "rfid")
    assert parts["rfid"] == frechet_distance(a, b) == pytest.approx(parts["rfid_mean"] + parts["rfid_covariance"])
    assert parts["rfid_mean"] == pytest.approx(float((a.mean - b.mean).square().sum()))
    moved = frechet_parts(a, of(features(200) + 0.5))
    assert moved["fid_mean"] == pytest.approx(24 * 0.25)
    assert moved["fid_covariance"] == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_a_set_with_itself_is_zero_also_where_singular() -> None:
    few = of(features(5))
    assert 0 <= frechet_distance(few, few) < 1e-2
    assert 0 <= frechet_distance(of(features(200)), of(features(200))) < 1e-6


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    statistics = of(features(30))
    statistics.save(tmp_path / "real.npz")
    loaded = FeatureStatistics.load(tmp_path / "real.npz")
    assert loaded.count == 30
    np.testing.assert_allclose(loaded.covariance, statistics.covariance, rtol=1e-12)
    loaded.update(features(4, seed=3))
    assert loaded.count == 34
    assert [path.name for path in tmp_path.iterdir()] == ["real.npz"]


def test_adm_reference_is_read_and_only_compared(tmp_path: Path) -> None:
    x = features(30).numpy()
    arrays = {"mu": x.mean(axis=0), "sigma": np.cov(x.T), "mu_s": x.mean(axis=0)[:5], "sigma_s": np.cov(x.T[:5])}
    np.savez(tmp_path / "reference.npz", arr_0=np.zeros((1, 4, 4, 3), np.uint8), **arrays)
    reference = FeatureStatistics.load(tmp_path / "reference.npz")
    assert reference.count is None
    assert frechet_distance(reference, of(features(30))) < 1e-3
    assert FeatureStatistics.load(tmp_path / "reference.npz", "mu_s", "sigma_s").num_features == 5
    for use in (lambda: reference.update(features(2)), lambda: of(features(3)).merge(reference), reference.reduce):
        with pytest.raises(BadInput, match="without a sample count"):
            use()


def test_failures(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="width 24"):
        of(features(3)).update(torch.zeros(2, 23))
    with pytest.raises(BadInput, match="one extractor"):
        of(features(3)).merge(FeatureStatistics(2))
    with pytest.raises(BadInput, match="one extractor"):
        frechet_distance(of(features(3)), of(features(3, width=4)))
    with pytest.raises(BadInput, match="at least 2"):
        frechet_distance(of(features(1)), of(features(3)))
    with pytest.raises(BadInput, match="NaN"):
        frechet_distance(of(torch.full((3, 24), float("nan"))), of(features(3)))
    with pytest.raises(BadInput, match="No statistics"):
        FeatureStatistics.load(tmp_path / "absent.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(BadInput, match="not a readable"):
        FeatureStatistics.load(tmp_path / "text.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(BadInput, match="is not an"):
        FeatureStatistics.load(tmp_path / "array.npy")
    np.savez(tmp_path / "images.npz", arr_0=np.zeros(3))
    with pytest.raises(BadInput, match="no mu and no sigma"):
        FeatureStatistics.load(tmp_path / "images.npz")
    with pytest.raises(BadInput, match="expected"):
        FeatureStatistics.from_dict({"mu": np.zeros(3), "sigma": np.zeros((2, 2))})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["mu", "sigma", "count", "about"])
@pytest.mark.parametrize("place", [0.0, 0.5, 0.99])
def test_damaged_statistics_are_a_sentence(tmp_path: Path, save: Any, name: str, place: float) -> None:
    path = tmp_path / "real.npz"
    about = np.asarray(json.dumps({"extractor": {"name": "x", "digest": "y"}}))
    save(path, **of(features(30)).to_dict(), about=about)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
    content = bytearray(path.read_bytes())
    start = member.header_offset + 30 + int.from_bytes(content[member.header_offset + 26 :][:2], "little")
    start += int.from_bytes(content[member.header_offset + 28 :][:2], "little")
    content[start + int(place * member.compress_size)] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"real\.npz: .*(damaged|must be numbers)"):
        read_about(path) if name == "about" else FeatureStatistics.load(path)


def test_inference_mode_and_its_absence_may_alternate() -> None:
    values = features(40)
    with torch.inference_mode():
        statistics = FeatureStatistics(24)
        statistics.update(values[:10] * 1)
    statistics.update(values[10:20])
    with torch.inference_mode():
        statistics.update(values[20:] * 1)
        statistics.merge(of(values[:5]))
    statistics.merge(of(values[5:10]))
    expected = torch.cat([values, values[:10]])
    assert statistics.count == 50
    np.testing.assert_allclose(statistics.covariance, np.cov(expected.numpy().T), rtol=1e-10, atol=1e-9)


def test_error_of_a_mean() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(10, 50))
    left_out = [float(np.delete(values, group, 0).mean()) for group in range(10)]
    means = values.mean(1)
    assert jackknife_error(left_out) == pytest.approx(means.std(ddof=1) / 10**0.5)
    assert jackknife_error([1.0] * 10) == 0


def test_a_distance_without_each_group_is_that_of_the_others() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(53, 4, dtype=torch.float64, generator=random)
    reference = FeatureStatistics(4)
    reference.update(torch.randn(40, 4, generator=random))
    distances = left_out_distances(features, reference)
    assert len(set(distances)) == 11
    whole = FeatureStatistics(4)
    whole.update(features)
    assert distances[0] == pytest.approx(frechet_distance(whole, reference))
    groups = torch.randperm(53, generator=stream("jackknife", 53)).tensor_split(10)
    for group, distance in zip(groups, distances[1:], strict=True):
        others = FeatureStatistics(4)
        others.update(features[[row for row in range(53) if row not in group]])
        assert distance == pytest.approx(frechet_distance(others, reference))
    assert 0 < jackknife_error(distances[1:]) < distances[0]
