"""Converts files of the public release to artifacts and back, without changing a tensor's values.

Sizes come from the tensors' shapes. Those that shapes do not give are the release's: heads of 64 channels in the
tokenizer, 17 prefix tokens before 16 x 16 image tokens in the generator.
"""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alitok.artifacts.folder import check_weights, load_artifact, load_extra, owned_tensors, save_artifact
from alitok.artifacts.presets import preset_of
from alitok.artifacts.release import (
    generator_from_release,
    generator_to_release,
    tokenizer_from_release,
    tokenizer_to_release,
)
from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.common.files import atomic_file, sha256
from alitok.common.tensors import save_pickled
from alitok.data.imagenet import imagenet_names
from alitok.losses.adversarial import BlurDiscriminator
from alitok.models.decoder import Decoder
from alitok.models.encoder import Encoder
from alitok.models.generator import Generator
from alitok.models.quantizer import ClusteredQuantizer
from alitok.models.tokenizer import Tokenizer
from alitok.models.transformer import Attention

State = Mapping[str, Tensor]

HEAD_DIM = 64
NUM_PREFIX = 17
GRID = (16, 16)
EXPECTED = "AliTok.pth, alitok_b.bin, alitok_l.bin, alitok_xl.bin or a stage-1 training checkpoint of the release"
# Names that distinguish the two kinds of file and whose shapes give the sizes.
_SIGNATURES = {
    "tokenizer": (
        "latent_tokens",
        "encoder.positional_embedding",
        "encoder.patch_embed.weight",
        "encoder.conv_out.weight",
        "decoder.class_embedding",
        "decoder.decoder_embed.weight",
        "decoder.ffn.0.weight",
        "quantize.embedding.weight",
    ),
    "generator": ("embeddings.weight", "blocks.0.attn.q_norm.weight", "norm.weight", "output.weight", "output.bias"),
}
_DISCRIMINATOR = "discriminator."


def import_release(file: str | Path, out: str | Path) -> Path:
    """Converts a file of the public release to an artifact.

    Args:
        file: `AliTok.pth`, `alitok_{b,l,xl}.bin` (state dicts) or a stage-1 training checkpoint (tensors under
            `model_state`; ignores other entries). Tensors `discriminator.*` become an extra module of the artifact.
        out: the artifact's folder.

    Raises:
        BadInput: the file is missing, damaged or something else. Objects in it are never executed.
    """
    file, out = Path(file), Path(out)
    state = _read(file)
    disc = {name.removeprefix(_DISCRIMINATOR): t for name, t in state.items() if name.startswith(_DISCRIMINATOR)}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(_DISCRIMINATOR)}
    block, module = _recognize(state, file)
    is_tokenizer = isinstance(module, Tokenizer)
    module.load_state_dict((tokenizer_from_release if is_tokenizer else generator_from_release)(state), assign=True)
    extra = {}
    if disc:
        disc_block, discriminator = _discriminator(disc, file)
        discriminator.load_state_dict(disc, assign=True)
        extra["discriminator"] = (disc_block, discriminator)
    card = _tokenizer_card(module) if isinstance(module, Tokenizer) else _generator_card(module)
    save_artifact(out, block, module, {**card, "parents": {file.name: sha256(file)}}, extra)
    return out


def export_release(folder: str | Path, file: str | Path) -> Path:
    """Converts an artifact to a file of the public release: the inverse of `import_release`.

    A tokenizer of stage 1, or with a discriminator of the release's kind, becomes a training checkpoint with
    `model_state`; every other model a plain state dict. Discriminators of other kinds are left out.

    Raises:
        BadInput: there is no artifact, or importing the file again would give a different model.
    """
    file = Path(file)
    module = load_artifact(folder)
    own = owned_tensors(module.state_dict())
    stage1, discriminator = False, None
    if type(module) is Tokenizer:
        state = tokenizer_to_release(own)
        discriminator = load_extra(folder, "discriminator")
        stage1 = "decoder.ffn_aux.0.weight" in state
    elif type(module) is Generator:
        state = generator_to_release(own)
    else:
        raise BadInput(f"{folder} holds a {type(module).__name__}, which the release's files do not know.")
    try:
        same = _form(_recognize(state, folder)[1]) == _form(module)
    except BadInput as error:
        raise BadInput(f"{folder} has a form that the release's files do not know: {error}") from error
    if not same:
        raise BadInput(
            f"{folder} has a form that the release's files do not know: heads, positions, causality or "
            "classes differ from the release's, and its files record none of them."
        )
    if isinstance(discriminator, BlurDiscriminator):
        state |= {_DISCRIMINATOR + name: t for name, t in owned_tensors(discriminator.state_dict()).items()}
        stage1 = True
    with atomic_file(file) as temporary:
        save_pickled({"model_state": state} if stage1 else state, temporary)
    return file


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise BadInput(f"There is no file {file}; expected {EXPECTED}.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # pickle, zip and safetensors readers raise many kinds
        reason = "it is damaged, a git-lfs pointer or no PyTorch file"
        if "Unsupported global" in str(error):
            reason = "it holds Python objects besides tensors, which are never executed"
        raise BadInput(f"{file} cannot be read: {reason}; expected {EXPECTED}, tensors only.") from error
    if isinstance(content, Mapping) and isinstance(content.get("model_state"), Mapping):
        content = content["model_state"]
    if not isinstance(content, Mapping) or not content:
        raise BadInput(f"{file} holds no map of names to tensors; expected {EXPECTED}.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise BadInput(f"{file}: its entry {name!r} is no tensor; expected {EXPECTED}.")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in content.items()}


def _recognize(state: State, source: str | Path) -> tuple[dict[str, Any], nn.Module]:
    """The block, and the module on the meta device, whose tensors under the release's names fit `state` exactly."""
    missing = {kind: [name for name in names if name not in state] for kind, names in _SIGNATURES.items()}
    kind = min(missing, key=lambda kind: len(missing[kind]) / len(_SIGNATURES[kind]))
    if missing[kind]:
        raise BadInput(
            f"{source} is not {EXPECTED}: it is nearest to a {kind}, but has no tensor {missing[kind][0]!r}."
        )
    block = (_tokenizer_block if kind == "tokenizer" else _generator_block)(state, source)
    module = _build(block, source)
    to_release = tokenizer_to_release if kind == "tokenizer" else generator_to_release
    check_weights(state, to_release(module.state_dict()), source)
    return block, module


def _build(block: dict[str, Any], source: str | Path) -> nn.Module:
    try:
        with torch.device("meta"):
            return build(block)
    except BadInput as error:
        raise BadInput(f"{source} holds a model of a form that the release does not know: {error}") from error


def _shape(state: State, name: str, dims: int, source: str | Path) -> tuple[int, ...]:
    shape = tuple(state[name].shape)
    if len(shape) != dims:
        raise BadInput(f"{source}: the tensor {name!r} has shape {shape} and should have {dims} dimensions.")
    return shape


def _count(state: State, prefix: str) -> int:
    """The number of layers: names are `prefix` + number + '.' ..."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _heads(width: int, source: str | Path) -> int:
    if width % HEAD_DIM:
        raise BadInput(f"{source}: a width of {width} does not divide into the release's heads of {HEAD_DIM} channels.")
    return width // HEAD_DIM


def _block(target: type, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{target.__module__}.{target.__qualname__}", "init_args": arguments}


def _tokenizer_block(state: State, source: str | Path) -> dict[str, Any]:
    tokens, _ = _shape(state, "latent_tokens", 2, source)
    patches, _ = _shape(state, "encoder.positional_embedding", 2, source)
    width, _, _, patch = _shape(state, "encoder.patch_embed.weight", 4, source)
    code_dim = _shape(state, "encoder.conv_out.weight", 4, source)[0]
    buffer_tokens, decoder_width = _shape(state, "decoder.class_embedding", 2, source)
    codes, _ = _shape(state, "quantize.embedding.weight", 2, source)
    size = {"image_size": math.isqrt(patches) * patch, "patch_size": patch}
    stage1 = "decoder.ffn_aux.0.weight" in state
    encoder = _block(
        Encoder,
        **size,
        num_latents=tokens,
        code_dim=code_dim,
        width=width,
        depth=_count(state, "encoder.transformer."),
        heads=_heads(width, source),
    )
    decoder = _block(
        Decoder,
        **size,
        num_prefix=tokens - patches,
        code_dim=code_dim,
        width=decoder_width,
        depth=_count(state, "decoder.transformer."),
        heads=_heads(decoder_width, source),
        causal=stage1,
        buffer_tokens=buffer_tokens,
        prefix_head=stage1,
    )
    quantizer = _block(ClusteredQuantizer, codebook_size=codes, code_dim=code_dim, clustering=stage1)
    return _block(Tokenizer, encoder=encoder, quantizer=quantizer, decoder=decoder)


def _generator_block(state: State, source: str | Path) -> dict[str, Any]:
    rows, width = _shape(state, "embeddings.weight", 2, source)
    codes, _ = _shape(state, "output.weight", 2, source)
    (head_dim,) = _shape(state, "blocks.0.attn.q_norm.weight", 1, source)
    return _block(
        Generator,
        codebook_size=codes,
        num_classes=rows - codes - 2,
        num_prefix=NUM_PREFIX,
        grid=list(GRID),
        width=width,
        depth=_count(state, "blocks."),
        heads=width // head_dim,
    )


def _discriminator(state: State, source: str | Path) -> tuple[dict[str, Any], nn.Module]:
    convolutions = [f"blocks.{index}.0.weight" for index in range(_count(state, "blocks."))]
    for name in ("block_in.0.weight", *convolutions):
        if name not in state:
            raise BadInput(f"{source} holds a discriminator that is not the release's: {name!r} is missing.")
    stages = [_shape(state, name, 4, source)[0] for name in convolutions]
    block = _block(BlurDiscriminator, width=_shape(state, "block_in.0.weight", 4, source)[0], stages=stages)
    module = _build(block, source)
    check_weights(state, module.state_dict(), source)
    return block, module


def _form(module: nn.Module) -> dict[str, Any]:
    """The settings that decide a model's outputs, but not its tensors' names and shapes."""
    if isinstance(module, Generator):
        return {"heads": module.heads, "rope": module.rope.tolist()}
    assert isinstance(module, Tokenizer)
    parts = (module.encoder, module.quantizer, module.bottleneck, module.decoder)
    return {
        "classes": [type(part) for part in parts],
        "image_size": module.image_size,
        "attention": [(layer.heads, layer.causal) for layer in module.modules() if isinstance(layer, Attention)],
        "drop_prefix": module.decoder.drop_prefix if isinstance(module.decoder, Decoder) else None,
    }


def _tokenizer_card(module: Tokenizer) -> dict[str, Any]:
    stage = 1 if isinstance(module.decoder, Decoder) and module.decoder.prefix_head is not None else 2
    return {
        "kind": "tokenizer",
        "description": f"AliTok's public release: tokenizer of stage {stage}, {module.num_tokens} tokens of "
        f"{module.codebook_size} codes for {module.image_size} x {module.image_size} pixels",
        "data": "ImageNet-1k",
    }


def _generator_card(module: nn.Module) -> dict[str, Any]:
    assert isinstance(module, Generator)
    found = preset_of(module.output.in_features, len(module.blocks))
    size, preset = found or ("of another size", None)
    card: dict[str, Any] = {
        "kind": "generator",
        "description": f"AliTok's public release: generator {size}",
        "data": "ImageNet-1k" if preset else None,
        "class_names": imagenet_names() if preset and module.num_classes == 1000 else None,
        "guidance": preset and preset.guidance,
        "power": preset and preset.power,
        "seed": preset and preset.seed,
    }
    if preset:
        card["metrics"] = {"published": {"fid": preset.fid, "inception_score": preset.inception_score}}
    return card
