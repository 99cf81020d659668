"""clean-fid's modes: the same features as clean-fid's own functions give on the same files."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stand_in import write_wide
from torch import nn

from alitok.common.errors import BadInput
from alitok.evaluation import clean_fid
from alitok.evaluation.clean_fid import CleanFidExtractor
from alitok.evaluation.extractors import INCEPTION_FILE

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_wide(tmp_path / INCEPTION_FILE)


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_features_are_clean_fids(tmp_path: Path, weights: Path, mode: str) -> None:
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    images = np.random.default_rng(0).integers(0, 256, (5, 40, 40, 3), np.uint8)
    (tmp_path / "pngs").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "pngs" / f"{index}.png")
    network = InceptionV3W(str(tmp_path), download=False, resize_inside=mode == "legacy_tensorflow").eval()
    expected = get_folder_features(
        str(tmp_path / "pngs"), network, num_workers=0, device=torch.device("cpu"), mode=mode, verbose=False
    )
    extractor = CleanFidExtractor(mode, weights)
    features = extractor(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_allclose(features.pooled, expected, rtol=1e-4, atol=1e-5)
    assert features.probabilities.shape == (5, 0)
    assert extractor.stand_in
    assert extractor.name == f"clean-fid {mode}"


def test_missing_and_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean_fid, "clean_fid_folder", lambda: tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(BadInput, match=r"inception-2015-12-05\.pt.*nvlabs"):
        CleanFidExtractor("clean")
    with pytest.raises(BadInput, match=r"pt_inception-2015.*pytorch-fid"):
        CleanFidExtractor("legacy_pytorch")
    with pytest.raises(BadInput, match="no --extractor"):
        CleanFidExtractor("legacy_pytorch", tmp_path / "x.pth")
    with pytest.raises(BadInput, match="no mode 'cleaner'"):
        CleanFidExtractor("cleaner")
    (tmp_path / "other.pt").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"rename .*other\.pt"):
        CleanFidExtractor("clean", tmp_path / "other.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / INCEPTION_FILE))
    with pytest.raises(BadInput, match="not clean-fid's network"):
        CleanFidExtractor("clean")
