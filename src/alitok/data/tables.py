"""Reads tables through `datasets`: .parquet, .arrow and .tar files, saved datasets, the hub."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from alitok.common.errors import BadInput, first_line
from alitok.data.columns import check_same, choose_columns, choose_label, label_kind, read_labels
from alitok.data.found import Origin, PassedOver
from alitok.data.imagenet import name_notes, readable_names
from alitok.data.listing import subfolders
from alitok.data.local import load_files
from alitok.data.pictures import UnreadableImage, read_picture
from alitok.data.splits import beside, pick, role_of, role_of_file
from alitok.data.streaming import ParquetRows, StreamedSource, features_of, picture_in

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
SAVED = ("dataset_dict.json", "state.json")  # files that `save_to_disk` writes

Load = Callable[[str], Any]  # the name of a split -> datasets.Dataset


class TableSource:
    """Rows of a `datasets.Dataset` with an image and a label.

    Args:
        dataset: a `datasets.Dataset`.
        classes: classes of the training split; None = from the label column.

    Raises:
        BadInput: there is no image or label column, or a choice of several, or a row's label is missing or unknown.
    """

    def __init__(
        self,
        dataset: Any,
        name: str,
        image_column: str | None = None,
        label_column: str | None = None,
        classes: list[str] | None = None,
    ) -> None:
        import datasets

        if len(dataset) == 0:
            raise BadInput(f"{name} has no rows.")
        self.name = name
        self.image_column, label_column, notes = choose_columns(dataset.features, image_column, label_column, name)
        # a selection of rows must be copied row by row, a whole table need not
        column = (
            dataset.with_format("arrow")[:][label_column] if dataset._indices else dataset.data.column(label_column)
        )
        feature = dataset.features[label_column]
        self.classes, self.labels, notes = read_labels(column, feature, classes, name, notes)
        self.class_names = readable_names(self.classes, [Path(name)])
        self.origin = Origin(
            "table",
            columns={"image": self.image_column, "label": label_column},
            passed_over=(*name_notes(self.class_names), *notes),
        )
        self.rows = dataset.select_columns([self.image_column])
        if isinstance(dataset.features[self.image_column], datasets.Image):
            self.rows = self.rows.cast_column(self.image_column, datasets.Image(decode=False))
        self.description = f"{len(dataset):,} images of {len(self.classes):,} classes in {name}"

    def __len__(self) -> int:
        return len(self.labels)

    def class_labels(self) -> np.ndarray:
        """(images,) int64."""
        return self.labels

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        where = f"in row {index:,} of {self.name}"
        with _or_bad_input(f"Cannot read what is {where}"):
            value = self.rows[index][self.image_column]
        value = picture_in(value)
        if value is None:
            raise UnreadableImage(f"There is no image {where}; replace or remove the row.")
        return read_picture(value, where), int(self.labels[index])


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in SAVED)


def table_files(folder: Path) -> dict[str, list[Path]]:
    """Table files and archives by their ending, in a folder and in its subfolders that may contain a split.

    Hidden files are left out: a Mac writes `._train.parquet` next to `train.parquet`, which is no table.
    """
    # only these subfolders: listing a thousand class folders takes seconds
    places = [folder, *(folder / name for name in subfolders(folder) if name == "data" or role_of(name) is not None)]
    found = {ending: [path for place in places for path in sorted(place.glob(f"[!.]*{ending}"))] for ending in BUILDERS}
    return {ending: files for ending, files in found.items() if files}


def open_tables(
    folder: Path,
    split: str,
    split_name: str | None,
    image_column: str | None,
    label_column: str | None,
    streaming: bool = False,
) -> tuple[TableSource | StreamedSource, bool]:
    """A split of a folder of tables, and whether it is the whole split (False: hold validation images out of it).

    With `streaming`, parquet files are read in place; else `datasets` copies tables to its cache once. The beginning of
    a file's name, or else of its folder's, decides its split (train, val, test). A folder from `save_to_disk` has its
    own splits.

    Raises:
        BadInput: files are damaged, a split is missing, or as `TableSource`.
    """
    import datasets

    columns = (image_column, label_column)
    if not streaming and is_saved(folder):
        with _or_bad_input(f"Cannot open the saved dataset {folder}"):
            saved = datasets.load_from_disk(str(folder))
        groups = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        found = Origin("saved dataset", passed_over=_unread(set(subfolders(folder)) - set(groups)))
        return _open(lambda name: groups[name], list(groups), str(folder), found, split, split_name, columns)

    found_files = table_files(folder)
    if not found_files:
        raise BadInput(f"{folder} is a saved dataset, which cannot be streamed; leave out streaming.")
    (ending, files), *others = found_files.items()
    by_split, guesses = _group(folder, files, split_name)
    for other, left in others:
        guesses.append(PassedOver(f"files ending in {other}", len(left), f"the {ending} files are read"))
    guesses += _unread(set(subfolders(folder)) - {path.parent.name for path in files})

    def load(name: str) -> Any:
        if streaming:
            return _stream(by_split[name], str(folder))
        paths = [str(path) for path in by_split[name]]
        with _or_bad_input(f"Cannot read the {ending} files of {folder}"):
            if len(paths) > 1 and ending in SCHEMAS:  # `datasets` reads all of them by the first one's schema
                features = features_of([SCHEMAS[ending](path) for path in paths])
                image, label, _ = choose_columns(features[0], *columns, str(folder))
                check_same(paths, features, image, label)
            return load_files(BUILDERS[ending], paths)

    found = Origin(f"{ending} files" + ", streamed" * streaming, passed_over=tuple(guesses))
    return _open(load, list(by_split), str(folder), found, split, split_name, columns)


def open_hub(
    name: str,
    split: str,
    split_name: str | None,
    image_column: str | None,
    label_column: str | None,
    streaming: bool = False,
) -> tuple[TableSource | StreamedSource, bool]:
    """A split of the Hugging Face dataset `owner/name`, downloaded or streamed; else as `open_tables`.

    Raises:
        BadInput: there is no network, no such dataset or no access, or as `TableSource`.
    """
    import datasets
    from huggingface_hub import HfApi

    problem = (
        f"Cannot load the Hugging Face dataset {name} (it must exist, be open to you and be reachable, or be in the "
        "cache with HF_HUB_OFFLINE=1; a folder with a copy works too)"
    )
    with _or_no_access(name), _or_bad_input(problem):
        if not datasets.config.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, timeout=10)  # else half a minute of retries if there is no network
        available = [split_name] if split_name is not None else datasets.get_dataset_split_names(name)

    def load(part: str) -> Any:
        with _or_no_access(name), _or_bad_input(problem):
            if not streaming:
                return datasets.load_dataset(name, split=part)
            files = datasets.load_dataset_builder(name).config.data_files
            return _stream(files[part] if files else [], name)

    found = Origin("Hugging Face dataset" + ", streamed" * streaming)
    return _open(load, available, name, found, split, split_name, (image_column, label_column))


def _open(
    load: Load,
    available: Sequence[str],
    name: str,
    found: Origin,
    split: str,
    split_name: str | None,
    columns: tuple[str | None, str | None],
) -> tuple[TableSource | StreamedSource, bool]:
    train, validation = pick(available, "train"), pick(available, "val", "test")
    chosen = split_name or (train if split == "train" or validation is None else validation)
    if chosen is None or chosen not in available:
        raise BadInput(f"{name} has no split {chosen or 'train'!r}; it has {', '.join(available)}.")
    dataset = load(chosen)
    classes = None
    if split == "val" and chosen != train and train is not None:
        # if labels are numbers or words, the training split decides the classes
        features = _features(dataset)
        label_column, _ = choose_label(features, columns[1], name)
        if not hasattr(features[label_column], "names"):
            training = load(train)
            classes = _source(training, name, columns[0], label_column).classes
            kinds = [label_kind(_features(part)[label_column]) for part in (training, dataset)]
            if kinds == ["words", "integers"]:
                raise BadInput(
                    f"The column {label_column!r} of {name} holds words in {train}, but integers in {chosen}."
                )
    source = _source(dataset, name, *columns, classes)
    notes = list(found.passed_over)
    if validation is not None and role_of(validation) == "test" and split_name is None:
        notes.append(
            PassedOver(f"split {validation}", 1, "taken for validation, because there is no validation, val or valid")
        )
    source.origin = replace(
        source.origin,
        layout=found.layout,
        split=chosen,
        beside=beside(available, train, validation, "split"),
        passed_over=(*notes, *source.origin.passed_over),
    )
    return source, split_name is not None or validation is not None


def _features(dataset: Any) -> Any:
    return dataset.features[0] if isinstance(dataset, ParquetRows) else dataset.features


def _source(dataset: Any, *arguments: Any) -> TableSource | StreamedSource:
    streamed = isinstance(dataset, ParquetRows)
    with _or_bad_input(f"Cannot read the labels of {arguments[0]}"):
        return StreamedSource(dataset, *arguments) if streamed else TableSource(dataset, *arguments)


def _stream(files: Sequence[Any], name: str) -> ParquetRows:
    paths = [str(file) for file in files]
    if not paths or not all(path.endswith(".parquet") for path in paths):
        raise BadInput(f"{name} is not made of parquet files, which alone can be streamed; leave out streaming.")
    with _or_bad_input(f"Cannot read the parquet files of {name}"):
        rows = ParquetRows(paths)
    if len(rows) == 0:
        raise BadInput(f"{name} has no rows.")
    return rows


def _unread(folders: set[str]) -> tuple[PassedOver, ...]:
    """Notes on folders next to tables that belong to none of them."""
    why = "it is no part of the tables next to it, by its name or content"
    return tuple(PassedOver(f"folder {name}", 1, why) for name in sorted(folders))


def _arrow_schema(path: str) -> pa.Schema:
    with pa.memory_map(path) as file:
        try:
            return pa.ipc.open_stream(file).schema
        except pa.ArrowInvalid:  # not the streaming format
            return pa.ipc.open_file(file).schema


SCHEMAS: dict[str, Callable[[str], pa.Schema]] = {".parquet": pq.read_schema, ".arrow": _arrow_schema}


def _group(folder: Path, files: list[Path], split_name: str | None) -> tuple[dict[str, list[Path]], list[PassedOver]]:
    """Files by split, from the beginning of the names of file or folder, and notes on what was guessed."""
    groups: dict[str, list[Path]] = {}
    rest: list[Path] = []
    for path in files:
        found = next(
            filter(None, map(partial(_split_of, given=split_name), reversed(path.relative_to(folder).parts))), None
        )
        (rest if found is None else groups.setdefault(found, [])).append(path)
    if rest and "train" in groups:
        raise BadInput(f"Cannot tell the split of {rest[0]}; let its name begin with train, val or test.")
    if not rest:
        return groups, []
    why = "taken for the training split, because their names begin with no split"
    return {**groups, "train": rest}, [PassedOver(f"files like {rest[0].name}", len(rest), why)]


def _split_of(part: str, given: str | None) -> str | None:
    """The split with which the name of a file or folder begins; `given` is tried first."""
    return given if given and part.lower().startswith(given.lower()) else role_of_file(part)


@contextmanager
def _or_bad_input(what: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # datasets and its libraries raise dozens of kinds
        raise BadInput(f"{what}: {first_line(error)}.") from error


@contextmanager
def _or_no_access(name: str) -> Iterator[None]:
    """Raises BadInput with a remedy if an error's chain of causes shows that a dataset of the hub is gated."""
    from huggingface_hub.errors import GatedRepoError

    try:
        yield
    except BadInput as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, GatedRepoError) or "gated dataset" in str(cause):
                raise BadInput(
                    f"The Hugging Face dataset {name} is gated: accept its terms at https://huggingface.co/datasets/{name}"
                    ", then log in with `hf auth login` or set HF_TOKEN."
                ) from error
            cause = cause.__cause__ or cause.__context__
        raise
