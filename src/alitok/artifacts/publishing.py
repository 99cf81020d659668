"""Checks an artifact for the Hugging Face hub, and uploads it."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alitok.artifacts.folder import CARD, KINDS, class_paths, load_artifact, plain_block, read_block, read_card
from alitok.artifacts.local_paths import has_path, texts
from alitok.artifacts.model_card import GRID, check_card, model_card
from alitok.artifacts.records import read_record
from alitok.common.digest import module_digest, tokenizer_digest
from alitok.common.errors import BadInput, first_line
from alitok.common.files import atomic_folder

README = "README.md"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")


def prepare(
    folder: Path,
    name: str,
    license: str | None = None,
    records: Sequence[Path] = (),
    grid: Path | None = None,
    tokenizer: str | None = None,
) -> tuple[list[Path], str]:
    """Checks a whole artifact and makes its model card.

    Args:
        folder: the artifact's folder.
        name: `owner/name`.
        license: the hub's name of the license; None if unknown.
        records: evaluation records.
        grid: a PNG of samples.
        tokenizer: hub name of a generator's tokenizer, for the lines that load it.

    Returns:
        The artifact's files, and the text of README.md.

    Raises:
        BadInput: the hub does not accept the name or the license. There is no artifact, it does not load, its weights
            are not those of the card, it draws with a file of this machine, or it names classes outside alitok. A
            record is invalid or of a different model.
    """
    for given in (name, *([] if tokenizer is None else [tokenizer])):
        if not _NAME.fullmatch(given) or ".." in given or "--" in given or given.endswith((".git", ".", "-")):
            raise BadInput(f"{given!r} is no name on the hub; write owner/name, of letters, digits, '-', '_' and '.'.")
    if license is not None and not _LICENSE.fullmatch(license):
        raise BadInput(f"--license {license!r} is no identifier of the hub; write e.g. mit, apache-2.0 or other.")
    card = read_card(folder)
    if card.get("kind") not in KINDS:
        raise BadInput(f"{folder / CARD} names the kind {card.get('kind')!r}; export the artifact again.")
    check_card(card, folder / CARD)
    files = [folder / CARD]
    for block in sorted(folder.glob("*.yaml")):
        weights = folder / ("model.safetensors" if block.name == "config.yaml" else f"{block.stem}.safetensors")
        if not weights.is_file():
            raise BadInput(f"{block} has no {weights.name} next to it; export the artifact again.")
        _check_ours(class_paths(read_block(block)), block)
        files += [block, weights]
    _check_ours(_of_card(card), folder / CARD)
    _check_no_file(card, folder / CARD)
    module = load_artifact(folder)  # raises if weights are damaged or do not fit
    digest = tokenizer_digest(module) if card["kind"] == "tokenizer" else module_digest(module)
    if digest != card.get("digest"):
        raise BadInput(
            f"The weights in {folder} have the digest {digest[:12]}, and {CARD} says {str(card.get('digest'))[:12]};"
            " export the artifact again."
        )
    read = [read_record(path, card) for path in records]
    return files, model_card(name, card, read, license, tokenizer, grid is not None)


def local_keys(files: Sequence[Path]) -> list[str]:
    """Keys of card and class blocks whose values contain a path of this machine, e.g. `card.json: data`."""
    found = []
    for path in files:
        if path.suffix in (".json", ".yaml"):
            content = json.loads(path.read_text("utf-8")) if path.suffix == ".json" else read_block(path)
            found += [f"{path.name}: {key}" for key, text in texts(content) if has_path(text)]
    return found


def write(folder: Path, files: Sequence[Path], text: str, grid: Path | None) -> None:
    """Writes all files of an upload into a folder, whole or not at all.

    Raises:
        BadInput: the folder contains something else, is the current one or a parent of it, or cannot be written.
    """
    if Path.cwd().resolve().is_relative_to(folder.resolve()):
        raise BadInput(f"--dry-run {folder} is the current folder or one around it; name another folder.")
    if folder.exists() and not _is_dry_run(folder):
        raise BadInput(f"{folder} holds something else than a dry run; choose another folder or empty it.")
    with atomic_folder(folder) as temporary:
        for path in files:
            shutil.copyfile(path, temporary / path.name)
        (temporary / README).write_text(text, "utf-8")
        if grid is not None:
            shutil.copyfile(grid, temporary / GRID)


def _is_dry_run(folder: Path) -> bool:
    """Whether a folder is empty or has only the files of a dry run, so that it may be replaced."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or (names >= {README, CARD} and names <= {README, CARD, GRID, *filter(_is_part, names)})


def upload(
    name: str, files: Sequence[Path], text: str, grid: Path | None, private: bool = False, endpoint: str | None = None
) -> str:
    """Uploads all files in one commit. Does not send files again that the hub already has.

    Args:
        endpoint: address of the hub; None for HF_ENDPOINT, or huggingface.co.

    Returns:
        The address of the model's page.

    Raises:
        BadInput: there is no token, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    if get_token() is None:
        raise BadInput("There is no token for the hub: run `hf auth login`, or set HF_TOKEN to one that may write.")
    api = HfApi(endpoint=endpoint)
    parts: list[tuple[str, Any]] = [(path.name, path) for path in files] + [(README, text.encode())]
    parts += [] if grid is None else [(GRID, grid)]
    try:
        api.create_repo(name, private=private or None, exist_ok=True)
        new = {place for place, _ in parts}
        # parts of an earlier version, such as a discriminator, would be loaded with this one
        stale = [path for path in api.list_repo_files(name) if _is_part(path) and path not in new]
        operations: list[Any] = [CommitOperationDelete(path_in_repo=path) for path in stale]
        operations += [CommitOperationAdd(path_in_repo=place, path_or_fileobj=content) for place, content in parts]
        done = api.create_commit(name, operations, commit_message="Upload with alitok")
    except Exception as error:  # each layer of the library has its own class: no network, no permission, ...
        raise BadInput(f"{name} is not published: {_reason(error, api.endpoint)}.") from error
    return str(done.repo_url)


def _is_part(path: str) -> bool:
    """Whether a path in an artifact's folder is a module's configuration or weights."""
    return "/" not in path and path.endswith((".yaml", ".safetensors"))


def _reason(error: BaseException, endpoint: str) -> str:
    """Why an upload failed, with the hub's message if there is one, and what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    chain = list(_causes(error))
    refused = next((cause for cause in chain if isinstance(cause, HfHubHTTPError) and cause.response is not None), None)
    if refused is not None:
        status = refused.response.status_code
        said = (refused.server_message or "").strip()
        words = first_line(Exception(said)) if said else f"HTTP status {status}, without a word"
        if status == 401:
            return f"the hub refuses the token ({words}); run `hf auth login`, or set HF_TOKEN to one that may write"
        if status == 403:
            return f"the token may not write there ({words}); take a token that may, or another OWNER"
        again = "; try again later" if status == 429 or status >= 500 else ""
        return f"the hub refuses it ({words}){again}"
    if any(isinstance(cause, json.JSONDecodeError) for cause in chain):
        return f"{endpoint} does not answer as a hub does; look at HF_ENDPOINT, or for a proxy that asks for a login"
    # the library uses httpx or requests
    if any(
        isinstance(cause, ConnectionError | TimeoutError) or type(cause).__module__.startswith(("httpx", "requests"))
        for cause in chain
    ):
        return f"{first_line(error)}; the same command sends what is missing"
    return first_line(error)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _of_card(card: dict[str, Any]) -> list[str]:
    """Class paths in a card's recommendations for drawing."""
    found = []
    for key in ("schedule", "sampler"):
        value = card.get(key)
        if isinstance(value, dict):
            found += list(class_paths(plain_block(value)))
        elif isinstance(value, str) and "." in value:
            found.append(value)
    return found


def _check_ours(paths: Any, source: Path) -> None:
    for path in paths:
        if path.partition(".")[0] != "alitok":
            raise BadInput(
                f"{source} names {path}, and an artifact of the hub may only name classes of alitok: nobody could load"
                " it without your code. Give people the folder and the code instead."
            )


def _check_no_file(card: dict[str, Any], source: Path) -> None:
    """Refuses a recommendation for drawing that reads a file of this machine."""
    for key in ("schedule", "sampler"):
        for place, value in texts(card.get(key), key):
            if value and (place.endswith(".checkpoint") or has_path(value)):
                raise BadInput(
                    f"{source} draws with {value} ({place}), which nobody else can load; export the generator with"
                    " another schedule or sampler."
                )
