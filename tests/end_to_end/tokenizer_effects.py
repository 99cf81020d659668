"""Two tokenizer ideas over one base, and whether an idea acts there."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from test_ideas import reduced
from tiny import module_of
from torch import Tensor

from alitok.common.build import import_class
from alitok.common.random import Step
from alitok.ideas.post_training import PairedDataModule
from alitok.models.seams import Quantizer
from alitok.studies import small
from alitok.training.records import MicroBatch, StepRecord

IMAGES = 4
FITTED = small.IMAGES // small.BATCH  # batches that a small run fits on; the files say 32


class Pair:
    """The training module of a stack of files, at a small size, and what its parts make of some images."""

    def __init__(self, files: tuple[Path, ...], folder: Path) -> None:
        self.config = reduced(files, folder)
        self.module: Any = module_of(self.config)
        generator = torch.Generator().manual_seed(0)
        self.model = self.module.model
        self.paired = issubclass(import_class(self.config["data"]["class_path"]), PairedDataModule)
        if hasattr(self.module, "tokenizer"):
            self.images = torch.rand(IMAGES, 3, self.model.image_size, self.model.image_size, generator=generator)
            shape = (IMAGES, self.model.num_tokens, *([self.model.sub_codes] if self.model.sub_codes > 1 else []))
            self.ids = torch.randint(self.model.codebook_size, shape, generator=generator)
            if self.module.schedule.at(0).phase.fit:  # as a run does before its first step; as many latents as codes
                self.model.quantizer.fit(iter([self.model.encode_latents(self.images)] * 4))
            for parameter in self.model.decoder.parameters():  # what begins at zero would hide the tokens
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.2, generator=generator)

    @torch.no_grad()
    def image(self, paired: bool | None = None) -> Tensor:
        """What the decoder makes in training, of given tokens in post-training."""
        ids = self.ids if (self.paired if paired is None else paired) else None
        step = Step(0, 0, 10, 10 * IMAGES, range(IMAGES))
        return self.model.train()(self.images, ids=ids, step=step)["image"]


def changes(pair: Pair, without: AbstractContextManager[Any]) -> bool:
    with without:
        plain = pair.image()
    return not torch.equal(plain, pair.image())


@contextmanager
def no_bottleneck(tokenizer: Any) -> Iterator[None]:
    bottleneck, tokenizer.bottleneck = tokenizer.bottleneck, None
    yield
    tokenizer.bottleneck = bottleneck


def bottleneck(name: str) -> Callable[[Pair, Path], bool]:
    def acts(pair: Pair, folder: Path) -> bool:
        kind = type(pair.model.bottleneck).__name__
        return kind == name and changes(pair, no_bottleneck(pair.model))

    return acts


def quantizer(name: str, codes: int) -> Callable[[Pair, Path], bool]:
    def acts(pair: Pair, folder: Path) -> bool:
        model = pair.model
        plain = patch.object(
            model.quantizer, "lookup", lambda ids: torch.zeros(*ids.shape[:2], 1).expand(-1, -1, width)
        )
        width = model.quantizer(model.encode_latents(pair.images)).latents.shape[-1]
        if not pair.paired:  # the latents, unquantized
            plain = patch.object(
                model,
                "forward",
                lambda images, ids, step: type(model).forward(model, images, quantize=False, step=step),
            )
        return type(model.quantizer).__name__ == name and model.codebook_size == codes and changes(pair, plain)

    return acts


def titok(pair: Pair, folder: Path) -> bool:
    return type(pair.model.decoder).__name__ == "TiTokDecoder" and pair.model.num_tokens == 32


def post_training(pair: Pair, folder: Path) -> bool:
    given = pair.paired and not torch.equal(pair.image(), pair.image(paired=False))
    return given and pair.module.trainable_of == {"post": ["decoder"]}


def codes(count: int) -> Callable[[Pair, Path], bool]:
    return lambda pair, folder: pair.model.codebook_size == count


def sub_codes(pair: Pair, folder: Path) -> bool:
    return pair.model.id_shape[1:] == (4,) and pair.model.codebook_size == 256


def shorter(pair: Pair, folder: Path) -> bool:
    return pair.model.num_tokens == 32 and pair.config["data"]["init_args"]["keep"] == 32


def term(name: str, part: str = "decoder") -> Callable[[Pair, Path], bool]:
    """The loss term has a value for what the model makes in training, and moves that part of it."""

    def acts(pair: Pair, folder: Path) -> bool:
        kind = pair.module.terms[name]
        kind.setup("cpu")
        step = Step(0, 0, 10, 10 * IMAGES, range(IMAGES))
        batch = MicroBatch({"image": pair.images}, 1.0, step, True)
        if pair.paired:
            batch.batch["tokens"] = pair.ids
        pair.model.zero_grad()
        outputs = pair.module.train()._outputs(batch, pair.module.schedule.at(0), StepRecord(0, False))
        for _, one in outputs.get("decodings") or [(1.0, outputs)]:
            kind(batch.batch, one, step).backward(retain_graph=True)
        moved = pair.model.get_submodule(part).parameters()
        return any(bool(p.grad.any()) for p in moved if p.grad is not None)

    return acts


class Codes(Quantizer):
    """Vectors of 16 channels for the codes of any quantizer."""

    def lookup(self, ids: Tensor) -> Tensor:
        vectors = torch.sin(ids[..., None] * torch.arange(1, 17.0))
        return vectors if ids.ndim == 2 else vectors.mean(-2)


def noise_decoder(pair: Pair, folder: Path) -> bool:
    """Once the noise has weights, another seed makes another image of the same latents."""
    decoder = pair.model.decoder
    torch.nn.init.normal_(decoder.embed.noise_weight)
    latents = torch.zeros(1, *pair.model.quantizer.lookup(pair.ids).shape[1:])
    with torch.no_grad():
        return not torch.equal(decoder.decode(latents, 0), decoder.decode(latents, 1))


def flow(name: str) -> Callable[[Pair, Path], bool]:
    """The velocity moves the decoder, and another seed makes another image of the same latents."""

    def acts(pair: Pair, folder: Path) -> bool:
        decoder = pair.model.decoder
        latents = torch.zeros(1, *pair.model.quantizer.lookup(pair.ids).shape[1:])
        with torch.no_grad():
            drawn = [decoder.decode(latents, seed) for seed in (0, 1)]
        return type(decoder).__name__ == name and not torch.equal(*drawn) and term("flow")(pair, folder)

    return acts


def token_schedule(name: str) -> Callable[[Pair, Path], bool]:
    """Some tokens are not there at every time, and the flow moves the decoder."""

    def acts(pair: Pair, folder: Path) -> bool:
        schedule = pair.model.decoder.tokens
        seen = schedule.visible(torch.tensor([0.05, 0.95]), pair.model.num_tokens)
        return type(schedule).__name__ == name and not seen[0].all() and flow("FlowDecoder")(pair, folder)

    return acts


def splat(pair: Pair, folder: Path) -> bool:
    """Gaussians that move change the image."""
    head = pair.model.decoder.image_head
    return type(head).__name__ == "SplatHead" and changes(pair, patch.object(head, "shape", None))


def nestok(pair: Pair, folder: Path) -> bool:
    """There are two decodings, of which the second is aligned with the first and moves the decoder."""
    step = Step(0, 0, 10, 10 * IMAGES, range(IMAGES))
    part = MicroBatch({"image": pair.images}, 1.0, step, True)
    if pair.paired:
        part.batch["tokens"] = pair.ids
    (_, whole), (_, prefix) = pair.module.train()._outputs(part, pair.module.schedule.at(0), StepRecord(0, False))[
        "decodings"
    ]
    pair.module.terms["align"](part.batch, {**prefix, "first": whole}, step).backward()
    moved = any(bool(p.grad.any()) for p in pair.model.decoder.parameters() if p.grad is not None)
    return moved and not torch.equal(whole["image"], prefix["image"])


def stacked(pair: Pair, folder: Path) -> bool:
    return [block.attention.causal for block in pair.model.decoder.blocks] == [True, False] and term("causal")(
        pair, folder
    )


def shift(pair: Pair, folder: Path) -> bool:
    return pair.model.decoder.shift == 1 and changes(pair, patch.object(pair.model.decoder, "shift", 0))


def holistic(pair: Pair, folder: Path) -> bool:
    return pair.model.num_tokens == 16 + 64 and pair.model.decoder.prefix_head is None


def hieratok(pair: Pair, folder: Path) -> bool:
    """Both halves have the scales of 8 x 8 patches; the decoder's buffer token is in the first."""
    kinds = [type(part).__name__ for part in (pair.model.encoder, pair.model.decoder)]
    ends = [block.attention.ends for block in (pair.model.encoder.blocks[-1], pair.model.decoder.blocks[0])]
    return kinds == ["HieraEncoder", "HieraDecoder"] and ends == [[1, 5, 21, 85], [2, 6, 22, 86]]


def several_codebooks(pair: Pair, folder: Path) -> bool:
    """Two ids a token, and the term that keeps them apart moves the adapters."""
    term = pair.module.terms["apart"]
    pair.model.zero_grad()
    step = Step(0, 0, 10, 10 * IMAGES, range(IMAGES))
    outputs = pair.model.train()(pair.images, ids=pair.ids if pair.paired else None, step=step)
    for _, one in outputs.get("decodings") or [(1.0, outputs)]:
        value = term({"image": pair.images}, one)
        if value.requires_grad:
            value.backward(retain_graph=True)
    learns = any(bool(p.grad.any()) for p in pair.model.quantizer.adapters.parameters() if p.grad is not None)
    # where the quantizer is frozen there is nothing to move
    return (learns or not any(p.requires_grad for p in pair.model.quantizer.parameters())) and pair.model.sub_codes == 2


def shared_index(pair: Pair, folder: Path) -> bool:
    """One id a token; the semantic half moves the encoder."""
    return quantizer("SharedIndexQuantizer", 1024)(pair, folder) and term("semantic_half", "encoder")(pair, folder)


def bins(pair: Pair, folder: Path) -> bool:
    """Fitted, the levels are those of the latents."""
    quantizer = pair.model.quantizer
    with torch.no_grad():
        before = quantizer.mean.zero_().clone()  # the phase of the bins may have come already
        quantizer.fit(iter([pair.model.encode_latents(pair.images)]))
    fitted = pair.module.schedule.phases["bins"].fit == FITTED
    return fitted and not torch.equal(before, quantizer.mean) and pair.model.sub_codes == 8


def kmeans(pair: Pair, folder: Path) -> bool:
    """The first phase fits the centers, and trains the decoder alone on them."""
    pair.model.quantizer(pair.model.encode_latents(pair.images), Step(0, 0, 10, IMAGES, range(IMAGES)))
    moment = pair.module.schedule.at(0)
    kinds = [type(part).__name__ for part in (pair.model.encoder, pair.model.quantizer)]
    fitted = moment.phase.fit == FITTED and bool(pair.model.quantizer.fitted)
    return (
        fitted and pair.module.trainable_of[moment.name] == ["decoder"] and kinds == ["FrozenVGG16", "KMeansQuantizer"]
    )


def t2t(pair: Pair, folder: Path) -> bool:
    encoder = pair.model.encoder
    return type(encoder).__name__ == "T2TEncoder" and changes(pair, patch.object(encoder.patch_embed, "scale", 0.0))


def windows(pair: Pair, folder: Path) -> bool:
    """The offsets of the last block's windows change the image."""
    attention = pair.model.encoder.blocks[-1].attention
    other = torch.nn.Parameter(torch.randn(attention.bias.shape, generator=torch.Generator().manual_seed(0)) * 10)
    return type(attention).__name__ == "WindowAttention" and changes(pair, patch.object(attention, "bias", other))
