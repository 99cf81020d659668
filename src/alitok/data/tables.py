"""Data sets of rows, read through `datasets`: .parquet, .arrow and .tar files, saved datasets, the hub."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from alitok.common.errors import BadInput, first_line
from alitok.data.columns import choose_columns, choose_label, read_labels
from alitok.data.pictures import UnreadableImage, read_picture
from alitok.data.streaming import ParquetRows, StreamedSource
from alitok.data.wordnet import readable_names

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
SPLIT_FOLDERS = ("data", "train", "val", "validation", "test")

Load = Callable[[str], Any]  # the name of a split -> datasets.Dataset


class TableSource:
    """Rows of a `datasets.Dataset` with an image and a label.

    Args:
        dataset: a `datasets.Dataset`.
        classes: of the training split, None = from the label column.

    Raises:
        BadInput: no image or label column, several to choose from, rows without a label or with an unknown one.
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
        self.image_column, label_column = choose_columns(dataset.features, image_column, label_column, name)
        # a selection of rows is read row by row, a whole table without a copy
        column = (
            dataset.with_format("arrow")[:][label_column] if dataset._indices else dataset.data.column(label_column)
        )
        self.classes, self.labels = read_labels(column, dataset.features[label_column], classes, name)
        self.class_names = readable_names(self.classes, [Path(name)])
        self.rows = dataset.select_columns([self.image_column])
        if isinstance(dataset.features[self.image_column], datasets.Image):
            self.rows = self.rows.cast_column(self.image_column, datasets.Image(decode=False))
        self.description = f"{len(dataset):,} images of {len(self.classes):,} classes in {name}"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        value = self.rows[index][self.image_column]
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        where = f"in row {index:,} of {self.name}"
        if value is None:
            raise UnreadableImage(f"There is no image {where}; replace or remove the row.")
        return read_picture(value, where), int(self.labels[index])


def has_tables(folder: Path) -> bool:
    """Whether a folder is one of table files rather than of class folders."""
    return bool(_table_files(folder)[1]) or (folder / "dataset_dict.json").is_file()


def open_tables(
    folder: Path,
    split: str,
    split_name: str | None,
    image_column: str | None,
    label_column: str | None,
    streaming: bool = False,
) -> tuple[TableSource | StreamedSource, bool]:
    """A split of a folder of tables, and whether it is the whole split (False: validation must be held out of it).

    With `streaming`, parquet files are read in place; else `datasets` copies tables to its cache once. Files belong to
    the split that their name, or else their folder's, begins with (train, val, test); a folder made by `save_to_disk`
    is opened as such.

    Raises:
        BadInput: damaged files, a missing split, or as `TableSource`.
    """
    import datasets

    columns = (image_column, label_column)
    if not streaming and ((folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()):
        with _or_bad_input(f"Cannot open the saved dataset {folder}"):
            saved = datasets.load_from_disk(str(folder))
        groups = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        return _open(lambda name: groups[name], list(groups), str(folder), split, split_name, columns)

    ending, files = _table_files(folder)
    by_split = _group(folder, files, split_name)

    def load(name: str) -> Any:
        if streaming:
            return _stream(by_split[name], str(folder))
        paths = [str(path) for path in by_split[name]]
        with _or_bad_input(f"Cannot read the {ending} files of {folder}"):
            return datasets.load_dataset(BUILDERS[ending], data_files={"train": paths}, split="train")

    return _open(load, list(by_split), str(folder), split, split_name, columns)


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
        BadInput: no network, no such dataset, no access, or as `TableSource`.
    """
    import datasets
    from huggingface_hub import HfApi

    problem = (
        f"Cannot load the Hugging Face dataset {name} (it must exist, be open to you and be reachable, or be in the "
        "cache with HF_HUB_OFFLINE=1; DATA= also takes a local copy)"
    )
    with _or_no_access(name), _or_bad_input(problem):
        if not datasets.config.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, timeout=10)  # without this, no network means half a minute of retries
        available = [split_name] if split_name is not None else datasets.get_dataset_split_names(name)

    def load(part: str) -> Any:
        with _or_no_access(name), _or_bad_input(problem):
            if not streaming:
                return datasets.load_dataset(name, split=part)
            files = datasets.load_dataset_builder(name).config.data_files
            return _stream(files[part] if files else [], name)

    return _open(load, available, name, split, split_name, (image_column, label_column))


def _open(
    load: Load,
    available: Sequence[str],
    name: str,
    split: str,
    split_name: str | None,
    columns: tuple[str | None, str | None],
) -> tuple[TableSource | StreamedSource, bool]:
    validation = next((part for part in ("validation", "val", "valid", "test") if part in available), None)
    chosen = split_name or ("train" if split == "train" or validation is None else validation)
    if chosen not in available:
        raise BadInput(f"{name} has no split {chosen!r}; it has {', '.join(available)}.")
    dataset = load(chosen)
    classes = None
    if split == "val" and chosen != "train" and "train" in available:
        # numbers or words as labels: which classes there are is what training says
        label_column = choose_label(dataset.features, columns[1], name)
        if not hasattr(dataset.features[label_column], "names"):
            classes = _source(load("train"), name, columns[0], label_column).classes
    source = _source(dataset, name, *columns, classes)
    return source, split_name is not None or validation is not None


def _source(dataset: Any, *arguments: Any) -> TableSource | StreamedSource:
    streamed = isinstance(dataset, ParquetRows)
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


def _table_files(folder: Path) -> tuple[str, list[Path]]:
    # only folders that may hold shards are listed: looking into a thousand class folders takes seconds
    places = [folder, *(folder / name for name in SPLIT_FOLDERS)]
    for ending in BUILDERS:
        files = [path for place in places if place.is_dir() for path in sorted(place.glob(f"*{ending}"))]
        if files:
            return ending, files
    return "", []


def _group(folder: Path, files: list[Path], split_name: str | None) -> dict[str, list[Path]]:
    """Files by split, from the beginnings of the names of file and folder."""
    words = {"train": "train", "val": "val", "test": "test"}
    if split_name is not None:
        words = {split_name: split_name, **words}
    groups: dict[str, list[Path]] = {}
    rest: list[Path] = []
    for path in files:
        parts = [part.lower() for part in reversed(path.relative_to(folder).parts)]
        found = next((words[word] for part in parts for word in words if part.startswith(word.lower())), None)
        (rest if found is None else groups.setdefault(found, [])).append(path)
    if rest and "train" in groups:
        raise BadInput(f"Cannot tell the split of {rest[0]}; let its name begin with train, val or test.")
    if rest:
        groups["train"] = rest
    return groups


@contextmanager
def _or_bad_input(what: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # datasets raises dozens of kinds, its own and those of the libraries below it
        raise BadInput(f"{what}: {first_line(error)}.") from error


@contextmanager
def _or_no_access(name: str) -> Iterator[None]:
    """Says what to do where a dataset of the hub is gated, at whatever depth that was found out."""
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
