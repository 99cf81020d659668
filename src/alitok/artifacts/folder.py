"""The artifact: a folder with a model for the next stage or the Hugging Face hub.

It has `config.yaml` (class_path + init_args), `model.safetensors` and `card.json`, and for each extra module
`NAME.yaml` and `NAME.safetensors`. It uses no pickle, and only torch modules are built from it.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from alitok.common.build import build, import_class, is_class_block
from alitok.common.digest import module_digest, tokenizer_digest
from alitok.common.errors import BadInput, first_line
from alitok.common.files import atomic_folder, check_readable_name
from alitok.common.tensors import save_tensors
from alitok.models.generator import Generator
from alitok.models.tokenizer import Tokenizer

KINDS = ("tokenizer", "generator")
CARD = "card.json"
SMALL = 2**26  # bytes; drawing fewer weights takes less time than importing torch's compiler for the meta device
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_COMMON: dict[str, Any] = {"data": None, "class_names": None, "steps": None, "images_seen": None}
_OF_GENERATOR: dict[str, Any] = {"tokenizer": None, "guidance": None, "power": None, "seed": None}

Block = Mapping[str, Any]


def save_artifact(
    folder: str | Path,
    block: Block,
    module: nn.Module,
    card: Mapping[str, Any],
    extra: Mapping[str, tuple[Block, nn.Module]] | None = None,
) -> dict[str, Any]:
    """Writes an artifact, whole or not at all, and replaces an older artifact.

    Args:
        block: {"class_path", "init_args"} from which `alitok.common.build.build` makes a module like `module`.
        module: its whole state dict is saved, from any device.
        card: `kind` ("tokenizer" or "generator") and, if known, `parents` (name -> digest), `data`, `class_names`,
            `steps`, `images_seen`, `metrics`; for a generator also `tokenizer` (digest of the tokenizer of its training
            tokens), `guidance`, `power`, `seed`. Other entries are kept.
        extra: other modules to save, by name, e.g. "discriminator".

    Returns:
        The card as written: with `version`, `digest` and every entry above.

    Raises:
        BadInput: the folder contains something else than an artifact, or cannot be written.
    """
    folder = Path(folder)
    check_readable_name(folder)
    if card.get("kind") not in KINDS:
        raise ValueError(f"an artifact's card needs a kind of {KINDS}, not {card.get('kind')!r}")
    if folder.exists() and not (folder / CARD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise BadInput(f"{folder} holds something else than an artifact; choose another folder or empty it.")
    is_tokenizer = card["kind"] == "tokenizer"
    full = {
        "kind": card["kind"],
        "version": version("alitok"),
        "digest": tokenizer_digest(module) if is_tokenizer else module_digest(module),
        "parents": {},
        "metrics": {},
        **_COMMON,
        **({} if is_tokenizer else _OF_GENERATOR),
    }
    full |= {key: value for key, value in card.items() if key not in ("version", "digest")}
    with atomic_folder(folder) as temporary:
        _write(temporary, "config.yaml", "model.safetensors", block, module)
        for name, (extra_block, extra_module) in (extra or {}).items():
            _write(temporary, f"{name}.yaml", f"{name}.safetensors", extra_block, extra_module)
        # numbers of numpy and torch become floats
        (temporary / CARD).write_text(json.dumps(full, indent=2, default=float) + "\n", "utf-8")
    return full


def load_artifact(path: str | Path, kind: str | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """The module of an artifact, in eval mode, with its card and block as `module.card` and `module.block`.

    Args:
        path: a folder, or `owner/name` on the Hugging Face hub.
        kind: required kind, "tokenizer" or "generator"; None for any.

    Raises:
        BadInput: there is no artifact or it is of the wrong kind, a class cannot be built, or weights are damaged or do
            not fit.
    """
    folder = locate(path)
    card = read_card(folder, kind)
    if kind is not None and card.get("kind") != kind:
        raise BadInput(f"{path} is a {card.get('kind')}, but a {kind} is needed here; give the folder of a {kind}.")
    block, module = _read(folder, "config.yaml", "model.safetensors", folder != Path(path).expanduser())
    module.to(device)
    vars(module).update(card=card, block=block)
    return module


def load_tokenizer(path: str | Path, device: torch.device | str = "cpu") -> Tokenizer:
    """A tokenizer in eval mode from a folder, or `owner/name` on the Hugging Face hub. Raises as `load_artifact`."""
    return cast(Tokenizer, load_artifact(path, "tokenizer", device))


def load_generator(path: str | Path, device: torch.device | str = "cpu") -> Generator:
    """A generator in eval mode from a folder, or `owner/name` on the Hugging Face hub. Raises as `load_artifact`."""
    return cast(Generator, load_artifact(path, "generator", device))


def load_extra(path: str | Path, name: str) -> nn.Module | None:
    """An extra module of an artifact (e.g. "discriminator"), with its `block`; None if there is none."""
    folder = locate(path)
    read_card(folder)
    if not (folder / f"{name}.yaml").is_file():
        return None
    block, module = _read(folder, f"{name}.yaml", f"{name}.safetensors", folder != Path(path).expanduser())
    vars(module).update(block=block)
    return module


def check_pair(generator: Generator, tokenizer: Tokenizer) -> None:
    """Refuses a tokenizer that did not make the generator's training tokens.

    If the generator's card names no tokenizer (published weights), checks only the numbers of tokens and codes. The
    generator may have fewer tokens than a tokenizer with `any_length`.

    Raises:
        BadInput: they do not belong together.
    """
    wanted = generator.card.get("tokenizer")
    if wanted is not None and (digest := tokenizer_digest(tokenizer)) != wanted:
        raise BadInput(
            f"The generator was trained on tokens of tokenizer {wanted[:12]}, but this tokenizer is {digest[:12]}; "
            "give the tokenizer (of stage 1 or 2) that made its token cache."
        )
    for words, ours, theirs in (
        ("codes", generator.codebook_size, tokenizer.codebook_size),
        ("tokens an image", generator.num_tokens, tokenizer.num_tokens),
        ("sub-codes a token", generator.sub_codes, tokenizer.sub_codes),
    ):
        shorter = words == "tokens an image" and ours < theirs and tokenizer.any_length
        if ours != theirs and not shorter:
            raise BadInput(
                f"The generator knows {ours} {words} and the tokenizer has {theirs}; give a pair that fits together."
            )


def locate(path: str | Path) -> Path:
    """The local folder of an artifact. If `owner/name` is not a folder, downloads it from the Hugging Face hub.

    Raises:
        BadInput: there is no such folder, and it cannot be downloaded.
    """
    folder = Path(os.path.expanduser(path))  # pathlib raises if the user of `~user` does not exist
    if folder.exists() or not _HUB_NAME.fullmatch(str(path)) or set(str(path).split("/")) & {".", ".."}:
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.yaml", "*.safetensors", CARD]))
    except Exception as error:  # offline, no such repository, no permission, ...: each library layer has its own class
        raise BadInput(
            f"{path} is no folder here and the Hugging Face hub does not give it: {first_line(error)}."
        ) from error


def read_card(folder: Path, kind: str | None = None) -> dict[str, Any]:
    """The card of an artifact folder.

    Args:
        kind: the required kind, for the message.

    Raises:
        BadInput: the folder or one of its files is missing, or the card is damaged.
    """
    todo = "give the folder that a run exported" + (f" (make: {kind.upper()}=)" if kind else "")
    if folder.is_file():
        raise BadInput(f"{folder} is a file, not an artifact; `alitok import-release` makes one of a published file.")
    if not folder.is_dir():
        raise BadInput(f"{folder} is not an artifact: there is no such folder; {todo}.")
    for name in ("config.yaml", "model.safetensors", CARD):
        if not (folder / name).is_file():
            raise BadInput(f"{folder} is not an artifact: {name} is missing; {todo}.")
    try:
        card = json.loads((folder / CARD).read_text("utf-8"))
    except ValueError as error:
        raise BadInput(f"{folder / CARD} is not readable JSON ({error}); export or download it again.") from error
    if not isinstance(card, dict):
        raise BadInput(f"{folder / CARD} should hold a map of names to values; export or download it again.")
    return card


def owned_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, contiguous, each in its own storage of the same size."""
    seen: set[int] = set()
    owned = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        owned[name] = tensor
    return owned


def plain_block(block: Block) -> dict[str, Any]:
    """A class block as plain dicts and lists, from any kind of map."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(dict(block)), resolve=True))


def check_weights(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str | Path) -> None:
    """Checks that names and shapes of a state dict are those of `expected`.

    Raises:
        BadInput: a name is absent or unexpected, or its shape differs; the message names the first.
    """
    for name in [*expected, *state]:
        have, want = ("absent" if name not in side else str(tuple(side[name].shape)) for side in (state, expected))
        if have != want:
            raise BadInput(f"The weights in {source} do not fit the model: {name} is {have} and should be {want}.")


def _write(folder: Path, config: str, weights: str, block: Block, module: nn.Module) -> None:
    (folder / config).write_text(OmegaConf.to_yaml(OmegaConf.create(plain_block(block))), "utf-8")
    same = _tied(module)
    state = {name: tensor for name, tensor in module.state_dict().items() if name not in same}
    save_tensors(owned_tensors(state), folder / weights)


def _read(folder: Path, config: str, weights: str, from_hub: bool) -> tuple[dict[str, Any], nn.Module]:
    """The block, and the module in eval mode, which uses the file's weights without a copy."""
    block = read_block(folder / config)
    _check_classes(block, folder / config, from_hub)
    try:
        state = load_file(folder / weights)
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{folder / weights} is missing or damaged ({error}); export or download it again.") from error
    module = _empty(block, folder / config, sum(tensor.nbytes for tensor in state.values()))
    same = _tied(module)
    expected = module.state_dict()
    check_weights(state, {name: tensor for name, tensor in expected.items() if name not in same}, folder / weights)
    state = {name: tensor.to(expected[name].dtype) for name, tensor in state.items()}  # e.g. of a file in bfloat16
    parameters = dict(module.named_parameters())
    for name, first in same.items():
        if not isinstance(state[first], nn.Parameter) and first in parameters:
            state[first] = nn.Parameter(state[first], requires_grad=parameters[first].requires_grad)
        state[name] = state[first]  # the same object, so that they stay tied
    module.load_state_dict(state, assign=True)
    return block, module.eval()


def read_block(path: Path) -> dict[str, Any]:
    """The class block in a YAML file of an artifact. Raises BadInput if the file has none."""
    try:
        block = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise BadInput(f"{path} is not readable YAML ({' '.join(str(error).split())}); export it again.") from error
    if not is_class_block(block):
        raise BadInput(f"{path} should hold class_path and init_args; export the artifact again.")
    return cast(dict[str, Any], block)


def _check_classes(block: Block, source: Path, from_hub: bool) -> None:
    """Refuses classes that are not torch modules. In a hub artifact refuses classes outside alitok, without import."""
    for class_path in class_paths(block):
        package = class_path.partition(".")[0]
        if from_hub and package != "alitok":  # importing a module runs it
            raise BadInput(
                f"{source} names {class_path}, and an artifact of the hub may only name classes of alitok; "
                "if you trust it, download it and give its folder."
            )
        target = None if package in sys.stdlib_module_names else import_class(class_path)
        if not (isinstance(target, type) and issubclass(target, nn.Module)):
            raise BadInput(f"{source} names {class_path}, which is no torch module; an artifact holds modules only.")


def _empty(block: Block, source: Path, size: int) -> nn.Module:
    """The module before it gets its weights, which take `size` bytes."""
    small, random_state = size <= SMALL, torch.get_rng_state()
    module = _construct(block, "cpu" if small else "meta", source)
    computed = [buffer for name, buffer in module.named_buffers() if name not in module.state_dict()]
    if not small and any(buffer.is_meta for buffer in computed):
        # the constructor computes buffers that are not saved, so it cannot run on the meta device
        return _construct(block, "cpu", source)
    if not computed:
        torch.set_rng_state(random_state)  # loading must not change random numbers, no matter the model's size
    return module


def _construct(block: Block, device: str, source: Path) -> nn.Module:
    try:
        with torch.device(device):
            return build(block)
    except (BadInput, TypeError, RuntimeError) as error:  # a size beyond all memory raises RuntimeError
        reason = first_line(error)
        raise BadInput(f"{source} cannot be built: {reason}; it was made for another version.") from error


def class_paths(value: Any) -> Iterator[str]:
    """Every class path in a class block, at any depth."""
    if is_class_block(value):
        yield str(value["class_path"])
    if isinstance(value, Mapping):
        for item in value.values():
            yield from class_paths(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from class_paths(item)


def _tied(module: nn.Module) -> dict[str, str]:
    """Name -> first name of the same parameter or buffer, for repeated entries of the state dict."""
    first: dict[int, str] = {}
    repeated = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if first.setdefault(id(tensor), name) != name:
            repeated[name] = first[id(tensor)]
    return repeated
