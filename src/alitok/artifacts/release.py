"""Converts names and shapes of tensors from and to the public release's files; uses none of its code.

`AliTok.pth` is the stage-2 tokenizer, a stage-1 training checkpoint has its tensors under `model_state`, and
`alitok_{b,l,xl}.bin` are generators. All are plain state dicts.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# release's name -> our name, either whole or without ".weight" and ".bias"
_BLOCK = {"ln_1": "norm1", "attn.in_proj": "attention.qkv", "attn.out_proj": "attention.proj", "ln_2": "norm2"}
_BLOCK |= {"mlp.c_fc": "mlp.0", "mlp.c_proj": "mlp.2"}
_TOKENIZER = {
    "latent_tokens": "encoder.latent_tokens",
    "encoder.positional_embedding": "encoder.patch_positions",
    "encoder.latent_token_positional_embedding": "encoder.latent_positions",
    "encoder.ln_pre": "encoder.norm_in",
    "encoder.ln_post": "encoder.norm_out",
    "encoder.conv_out": "encoder.to_code",
    "decoder.class_embedding": "decoder.buffer_tokens",
    "decoder.latent_token_positional_embedding": "decoder.positions",
    "decoder.decoder_embed": "decoder.embed",
    "decoder.ln_pre": "decoder.norm_in",
    "decoder.ln_post": "decoder.norm_out",
    "decoder.ffn.0": "decoder.image_head.linear",
    "decoder.conv_out": "decoder.image_head.conv",
    "decoder.ffn_aux.0": "decoder.prefix_head.linear",
    "decoder.conv_out_aux": "decoder.prefix_head.conv",
    "quantize.embedding": "quantizer.codebook",
    "quantize.embed_prob": "quantizer.usage",
}
_TRANSFORMER = re.compile(r"(encoder|decoder)\.(transformer|blocks)\.(\d+)\.(.+)\.(weight|bias)")
# Linear layers that are 1 x 1 convolutions in the release.
_CONVOLUTIONS = ("encoder.to_code.weight", "decoder.image_head.linear.weight", "decoder.prefix_head.linear.weight")
_GENERATOR = re.compile(r"(blocks\.\d+\.)(attn|attention)\.(.+)")


def _tokenizer_name(name: str, forward: bool) -> str:
    block, names = (_BLOCK, _TOKENIZER) if forward else ({v: k for k, v in d.items()} for d in (_BLOCK, _TOKENIZER))
    if match := _TRANSFORMER.fullmatch(name):
        part, _, index, inner, kind = match.groups()
        return f"{part}.{'blocks' if forward else 'transformer'}.{index}.{block.get(inner, inner)}.{kind}"
    if name in names:
        return names[name]
    stem, _, kind = name.rpartition(".")
    return f"{names.get(stem, stem)}.{kind}"


def tokenizer_from_release(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A tokenizer's tensors (stage 1 or 2) by our names. The stage-2 file has no usage statistic: it becomes zeros."""
    ours = {}
    for name, tensor in state.items():
        new = _tokenizer_name(name, forward=True)
        ours[new] = tensor.flatten(1) if new in _CONVOLUTIONS else tensor
    if "quantizer.codebook.weight" in ours:
        ours.setdefault("quantizer.usage", torch.zeros(len(ours["quantizer.codebook.weight"])))
    return ours


def tokenizer_to_release(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `tokenizer_from_release`. Only a stage-1 tokenizer keeps the usage statistic."""
    stage1 = any(name.startswith("decoder.prefix_head") for name in state)
    theirs = {}
    for name, tensor in state.items():
        if name == "quantizer.usage" and not stage1:
            continue
        theirs[_tokenizer_name(name, forward=False)] = tensor[..., None, None] if name in _CONVOLUTIONS else tensor
    return theirs


def generator_from_release(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A generator's tensors by our names."""
    return {_GENERATOR.sub(r"\1attention.\3", name): tensor for name, tensor in state.items()}


def generator_to_release(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `generator_from_release`."""
    return {_GENERATOR.sub(r"\1attn.\3", name): tensor for name, tensor in state.items()}
