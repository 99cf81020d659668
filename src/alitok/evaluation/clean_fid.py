"""clean-fid's modes as extractors: its resize and its networks, to reproduce its numbers."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from alitok.common.devices import float32_products
from alitok.common.errors import BadInput
from alitok.common.files import find_weights, hub_checkpoints, sha256
from alitok.evaluation.extractors import (
    ANOTHER_PLACE,
    INCEPTION_FILE,
    INCEPTION_ORIGIN,
    POOLED_WIDTH,
    Features,
    check_images,
    clean_fid_folder,
    has_inception_layers,
)
from alitok.evaluation.image_sets import READERS

RESIZES = {
    "clean": "PIL bicubic, antialiased, each channel in float, to 299 x 299",
    "legacy_tensorflow": "bilinear to 299 x 299 inside the network",
    "legacy_pytorch": "PyTorch bilinear, not antialiased, to 299 x 299",
}
MODES = tuple(RESIZES)
PYTORCH_FILE = "pt_inception-2015-12-05-6726825d.pth"
PYTORCH_ORIGIN = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{PYTORCH_FILE}"


class CleanFidExtractor:
    """One of clean-fid's modes (Parmar et al. 2022); gives pooled features only.

    Args:
        mode: "clean", "legacy_tensorflow" or "legacy_pytorch".
        path: the weight file or its folder; None = where clean-fid keeps it. Must be None for "legacy_pytorch".

    Raises:
        BadInput: an unknown mode, or a weight file that is missing or unsuitable.
    """

    num_features, num_spatial = POOLED_WIDTH, 0

    def __init__(self, mode: str, path: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        if mode not in MODES:
            raise BadInput(f"clean-fid has no mode {mode!r}: choose {', '.join(MODES)}.")
        from cleanfid.features import build_feature_extractor
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer

        self.name, self.resize, self.device = f"clean-fid {mode}", RESIZES[mode], torch.device(device)
        self._resizer = build_resizer(mode)
        # clean-fid would download a missing file; here the user is asked for it, as for every weight file
        if mode == "legacy_pytorch":
            if path is not None:
                raise BadInput("clean-fid's legacy_pytorch reads its weights from torch.hub's folder: no --extractor.")
            file = find_weights(PYTORCH_FILE, None, hub_checkpoints(), PYTORCH_ORIGIN)
            self._network = build_feature_extractor(mode, self.device, use_dataparallel=False)
            self.stand_in = False
        else:
            file = find_weights(INCEPTION_FILE, path, clean_fid_folder(), INCEPTION_ORIGIN, ANOTHER_PLACE)
            if file.name != INCEPTION_FILE:
                raise BadInput(f"clean-fid reads its network from a file called {INCEPTION_FILE}: rename {file}.")
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", FutureWarning)  # from torch.jit, as in `InceptionExtractor`
                    network = InceptionV3W(str(file.parent), download=False, resize_inside=mode == "legacy_tensorflow")
                self._network = network.to(self.device).eval()
                self._network(torch.zeros(1, 3, 299, 299, device=self.device))
            except (RuntimeError, ValueError, AttributeError) as error:
                raise BadInput(f"{file} is not clean-fid's network: download it from {INCEPTION_ORIGIN}.") from error
            self.stand_in = not has_inception_layers(network.base)
        self.digest = sha256(file)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Pooled features of uint8 images (B, 3, H, W); probabilities are (B, 0).

        Raises:
            BadInput: images of another type or shape.
        """
        check_images(images)
        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        with ThreadPoolExecutor(READERS) as pool:
            resized = np.stack(list(pool.map(self._resizer, arrays)))
        pixels = torch.from_numpy(resized).permute(0, 3, 1, 2).float().to(self.device)
        with torch.autocast(self.device.type, enabled=False), float32_products(tf32=False):
            pooled = self._network(pixels)
        return Features(pooled, pooled[:, :0])
