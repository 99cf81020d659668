"""PSNR, SSIM and rFID of a tokenizer's reconstructions."""

import torch
from torch import Tensor

from alitok.common.devices import float32_products
from alitok.common.distributed import all_sum
from alitok.common.errors import BadInput
from alitok.common.images import Quantization, to_uint8
from alitok.evaluation.extractors import Extractor
from alitok.evaluation.fid import FeatureStatistics, frechet_distance

MAX_PSNR = 100.0  # an exact copy has infinite PSNR, which would make the mean infinite and is no JSON number


def psnr(reconstructions: Tensor, images: Tensor) -> Tensor:
    """10 log10(1 / mse) of each image (B,), in dB, at most 100; images (B, 3, H, W) in [0, 1]."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    values = peak_signal_noise_ratio(reconstructions, images, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return values.clamp(max=MAX_PSNR)


def ssim(reconstructions: Tensor, images: Tensor) -> Tensor:
    """Structural similarity of each image (B,) (Wang et al. 2004, Gaussian window 11, sigma 1.5)."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(reconstructions, images, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)
    return values.reshape(-1)


class ReconstructionMetrics:
    """Mean PSNR (dB) and SSIM over images and, with an extractor, rFID of uint8 images.

    Args:
        reference: statistics of the originals; None = measure them on the originals that are added.
    """

    def __init__(
        self,
        extractor: Extractor | None = None,
        quantization: Quantization = "truncate",
        reference: FeatureStatistics | None = None,
    ) -> None:
        self.extractor = extractor
        self.reference = reference
        self.quantization = quantization
        self.reset()

    def reset(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)  # images, sum of PSNR, sum of SSIM
        if self.extractor is not None:
            self.real = FeatureStatistics(self.extractor.num_features)
            self.reconstructed = FeatureStatistics(self.extractor.num_features)

    @torch.no_grad()
    @float32_products(tf32=False)  # SSIM is a convolution
    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        """Add originals and reconstructions, both (B, 3, H, W) in [0, 1]; reconstructions are clamped.

        Raises:
            BadInput: different shapes, or values that are not finite.
        """
        if images.shape != reconstructions.shape or images.ndim != 4:
            raise BadInput(
                f"Images {tuple(images.shape)} and reconstructions {tuple(reconstructions.shape)} must be (B, 3, H, W)."
            )
        if len(images) == 0:
            return
        # Bytes first: `to_uint8` refuses values that are not finite before anything is added.
        real = to_uint8(images, self.quantization)
        fake = to_uint8(reconstructions, self.quantization)
        images, reconstructions = images.float(), reconstructions.float().clamp(0, 1)
        values = torch.stack([psnr(reconstructions, images), ssim(reconstructions, images)]).cpu().double()
        self._sums += torch.cat([torch.tensor([float(len(images))], dtype=torch.float64), values.sum(dim=1)])
        if self.extractor is not None:
            if self.reference is None:
                self.real.update(self.extractor(real).pooled)
            self.reconstructed.update(self.extractor(fake).pooled)

    def compute(self) -> dict[str, float]:
        """`psnr`, `ssim` and, with an extractor, `rfid`, equal on every process.

        Raises:
            BadInput: no image was seen (for rFID: fewer than two).
        """
        count, psnr_sum, ssim_sum = all_sum(self._sums).tolist()
        if not count:
            raise BadInput("Reconstruction metrics of no images are undefined: give images.")
        result = {"psnr": psnr_sum / count, "ssim": ssim_sum / count}
        if self.extractor is not None:
            real = self.real.reduce() if self.reference is None else self.reference
            result["rfid"] = frechet_distance(real, self.reconstructed.reduce())
        return result
