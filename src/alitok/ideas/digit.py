"""DiGIT, reduced: tokens are k-means codes of a frozen encoder's features, and a decoder learns to decode them.

DiGIT (arXiv 2410.12490) trains no decoder: a second generator writes the tokens of a pixel tokenizer.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import Step, stream
from alitok.ideas.shared import dino
from alitok.ideas.shared.sums import sums_by_code
from alitok.ideas.shared.teachers import DINOv2, Published, VGG16Map
from alitok.models.quantizer import check_codebook, relative_distances
from alitok.models.seams import Encoder, Quantized, Quantizer
from alitok.networks.frozen import counting, without_weights


class FrozenEncoder(Encoder):
    """The feature map of a published network, one latent per patch. Nothing here trains.

    The network's weights are read at the start of a fresh run, and are in every checkpoint and artifact of it.

    Args:
        image_size: height and width of the images in pixels.
        patch_size: side in pixels of a latent's square; images are resized so that the network's map has this grid.
        num_latents: N, the number of places in this grid; there is no prefix.
        weights: as for `Published`: None (torch.hub's folder of checkpoints), a file, its folder, or 'random:SEED'.
        drop_blocks: number of last blocks to omit; DiGIT omits 2, and applies the last norm.

    Attributes:
        source: the network; D is its `channels`.

    Raises:
        BadInput: more blocks to omit than possible, or an N that does not fit the grid.
    """

    source: type[Published]
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        num_latents: int,
        weights: str | None = None,
        drop_blocks: int = 0,
    ) -> None:
        super().__init__()
        teacher = self.teacher = self.source(weights)
        self.image_size, self.num_latents = image_size, (image_size // patch_size) ** 2
        if num_latents != self.num_latents:
            raise BadInput(
                f"{type(self).__name__} has a latent for each of its {self.num_latents} places: set num_latents to"
                f" that, not {num_latents}."
            )
        self.size = image_size // patch_size * teacher.stride
        with without_weights():  # the constructor must not read a file
            network: Any = teacher.network(torch.get_default_device())
        blocks: Any = network.blocks if isinstance(network, dino.DINOv2) else []
        if not 0 <= drop_blocks < max(1, len(blocks)):
            raise BadInput(
                f"{type(self).__name__}: drop_blocks must be 0 or more and below the {len(blocks)} blocks of a"
                f" {type(teacher).__name__}, not {drop_blocks}."
            )
        if drop_blocks:
            network.blocks = blocks[:-drop_blocks]
        self.network = network
        for name, values in (("mean", teacher.MEAN), ("deviation", teacher.STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def setup(self, device: torch.device) -> None:
        """Read the weights."""
        read = self.teacher.network("cpu").state_dict()
        own: Any = self.network
        own.load_state_dict({name: read[name] for name in own.state_dict()})

    @torch.no_grad()
    def forward(self, images: Tensor, step: Step | None = None) -> Tensor:
        """(B, 3, image_size, image_size) in [0, 1] -> (B, N, D)."""
        if images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bicubic", align_corners=False)
        maps: Tensor = self.network((images - self.mean) / self.deviation)
        return maps.flatten(2).mT


class FrozenDINOv2(FrozenEncoder):
    """Patch features of DINOv2-B/14."""

    source = DINOv2


class FrozenVGG16(FrozenEncoder):
    """VGG16's features after relu4_3; with random weights, features of an untrained network."""

    source = VGG16Map


class KMeansQuantizer(Quantizer):
    """Chooses the nearest center by squared L2 distance; k-means finds centers at the start of a phase with `fit: N`.

    Nothing is trained. Like faiss, which DiGIT uses, k-means starts from random latents and uses at most `most` latents
    per center; a center without latents moves to a latent that is far from its center.

    Args:
        codebook_size: V; DiGIT has 8,192 for DINOv2-B.
        code_dim: D.
        iterations: iterations of k-means.
        most: latents per center; reading stops when there are enough.

    Raises:
        BadInput: no centers, more than 2^24, or fewer than one iteration or latent per center.
    """

    codebook: Tensor
    fitted: Tensor

    def __init__(self, codebook_size: int, code_dim: int, iterations: int = 20, most: int = 256) -> None:
        super().__init__()
        check_codebook(codebook_size, "KMeansQuantizer", "change codebook_size")
        if iterations < 1 or most < 1:
            raise BadInput(f"KMeansQuantizer: iterations and most must be 1 or more, not {iterations} and {most}.")
        self.codebook_size, self.iterations, self.most = codebook_size, iterations, most
        self.register_buffer("codebook", torch.randn(codebook_size, code_dim))
        self.register_buffer("fitted", torch.zeros(()))
        self._ready = False  # copy of `fitted` on the host
        self.register_load_state_dict_post_hook(_note_fitted)

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, D) -> centers, ids (B, N), no losses.

        Raises:
            BadInput: a training step before any phase has fitted the centers.
        """
        if step is not None and not (self._ready or counting()):
            raise BadInput("KMeansQuantizer has not been fitted: give the first phase `fit: N`, or leave the idea out.")
        ids = self.ids(latents)
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            # the value is exactly the center: with large features latents + (center - latents) would round
            through = self.lookup(ids) + (latents - latents.detach())
        return Quantized(latents=latents, quantized=through, ids=ids)

    @torch.no_grad()
    def ids(self, latents: Tensor) -> Tensor:
        """(B, N, D) -> (B, N).

        Raises:
            BadInput: the latents have a wrong width.
        """
        if latents.shape[-1] != self.codebook.shape[1]:
            raise BadInput(
                f"KMeansQuantizer has centers of {self.codebook.shape[1]} channels, the latents {latents.shape[-1]}:"
                " set code_dim to that."
            )
        return self._nearest(latents.float().flatten(0, -2))[0].view(latents.shape[:-1])

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (B, N) -> (B, N, D) float32."""
        return F.embedding(ids, self.codebook)

    @torch.no_grad()
    def fit(self, batches: Iterator[Tensor]) -> None:
        """Find the centers by k-means.

        Raises:
            BadInput: fewer latents than centers.
        """
        count, parts, read = self.codebook_size, [], 0
        for latents in batches:
            parts.append(latents.flatten(0, -2))
            read += len(parts[-1])
            if read >= count * self.most:  # at full size all batches would not fit into memory
                break
        rows = torch.cat(parts)
        if len(rows) < count:
            raise BadInput(
                f"k-means needs a latent for each of its {count:,} centers, and `fit` gives {len(rows):,}: raise `fit`,"
                " or lower codebook_size."
            )
        drawn = torch.randperm(len(rows), generator=stream("k-means"))[: count * self.most].to(rows.device)
        rows = rows[drawn]
        self.codebook.copy_(rows[:count])
        for _ in range(self.iterations):
            ids, distances = self._nearest(rows)
            sizes = ids.new_zeros(count).scatter_add_(0, ids, torch.ones_like(ids))
            means = sums_by_code(rows, ids, count) / sizes.clamp_min(1)[:, None]
            # centers without latents move to the latents that are farthest from their centers
            rank = (sizes == 0).cumsum(0) - 1
            farthest = rows[distances.topk(count).indices]
            self.codebook.copy_(torch.where((sizes == 0)[:, None], farthest[rank.clamp_min(0)], means))
        self.fitted.fill_(1)
        self._ready = True

    def _nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(m, D) -> ids of the nearest centers (m,), squared distances to them (m,)."""
        ids, distances = [], []
        for block, relative in relative_distances(rows, self.codebook):
            least = relative.min(1)
            ids.append(least.indices)
            distances.append(least.values + block.square().sum(1))
        return torch.cat(ids), torch.cat(distances)


def _note_fitted(module: Any, _: Any) -> None:
    module._ready = bool(module.fitted)
