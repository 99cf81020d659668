import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Features, Image, Value

from alitok.common.errors import BadInput
from alitok.data.columns import MOST_CLASSES, check_same, choose_columns, label_kind, read_labels

INT, TEXT, FLOAT = Value("int64"), Value("string"), Value("float32")
NAMED = ClassLabel(names=["cat", "dog"])


def choose(columns, label=None):
    return choose_columns(Features({"image": Image(), **columns}), None, label, "pets")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"id": INT, "label": TEXT}, "label"),
        ({"id": INT, "width": INT, "label": TEXT}, "label"),
        ({"label": INT, "class": TEXT}, "label"),  # the class's word beside its number
        ({"id": INT, "Target": Value("uint8")}, "Target"),
        ({"id": INT, "label": Value("bool")}, "label"),
        ({"id": INT, "species": NAMED}, "species"),
        ({"label": NAMED, "fine": NAMED}, "label"),
        ({"label": NAMED, "target": INT}, "label"),
        ({"label": INT, "labels": [INT]}, "label"),
        ({"name": TEXT, "cls": INT}, "cls"),
    ],
)
def test_a_label_is_found_by_its_name_or_its_classes(columns, expected):
    assert choose(columns) == ("image", expected, [])


def test_any_other_column_of_integers_is_a_guess_that_is_announced():
    _, column, (note,) = choose({"kind": INT, "name": TEXT})
    assert column == "kind"
    assert str(note).startswith("column kind: taken for the label")
    assert choose({"kind": INT, "name": TEXT}, "kind") == ("image", "kind", [])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": INT, "width": INT}, "several: id, width"),
        ({"species": NAMED, "label": INT}, "several: label, species"),
        ({"species": NAMED, "label": TEXT}, "several: label, species"),
        ({"label": INT, "target": INT}, "several: label, target"),
        ({"fine": NAMED, "coarse": NAMED}, "several: fine, coarse"),
        ({"name": TEXT}, "has none"),
        ({"label": [INT], "id": INT}, "'label' of pets holds list"),
        ({"label": FLOAT, "id": INT}, "'label' of pets holds float32"),
    ],
)
def test_what_leaves_a_choice_is_refused(columns, message):
    with pytest.raises(BadInput, match=message):
        choose(columns)


@pytest.mark.parametrize(
    "feature",
    [
        [INT],
        {"x": INT},
        FLOAT,
        Value("binary"),
        Value("timestamp[s]"),
        Value("null"),
        Image(),
        datasets.Array2D((2, 2), "int8"),
    ],
)
def test_a_column_that_holds_no_labels_is_refused_by_name_too(feature):
    assert label_kind(feature) is None
    with pytest.raises(BadInput, match=r"The column 'kind' of pets holds .*, not integers or words"):
        choose_columns(Features({"image": Image(), "kind": feature, "label": INT}), "image", "kind", "pets")


@pytest.mark.parametrize(
    ("feature", "word"),
    [
        (INT, "int64"),
        (NAMED, "int64"),
        (FLOAT, "float32"),
        (Value("bool"), "bool"),
        (Value("null"), "null"),
        ([INT], "list"),
        ({"x": INT}, "dict"),
        (datasets.Array3D((2, 2, 3), "uint8"), "uint8"),
    ],
)
def test_a_column_that_holds_no_pictures_is_refused_by_name_too(feature, word):
    columns = Features({"image": Image(), "kind": feature, "label": INT})
    with pytest.raises(BadInput, match=rf"'kind' of pets holds {word}, not pictures or their paths; name .* image_col"):
        choose_columns(columns, "kind", "label", "pets")


@pytest.mark.parametrize(
    "feature",
    [
        Image(),
        Value("binary"),
        Value("large_binary"),
        {"bytes": Value("binary"), "path": TEXT},
        TEXT,
        Value("large_string"),
        Value("string_view"),
    ],
)
def test_pictures_and_their_paths_may_be_named(feature):
    columns = Features({"image": Image(), "kind": feature, "label": INT})
    assert choose_columns(columns, "kind", "label", "pets") == ("kind", "label", [])


def read(values, feature=INT, classes=None, guessed=()):
    return read_labels(pa.chunked_array([pa.array(values)]), feature, classes, "pets", guessed)


@pytest.mark.parametrize(
    ("values", "feature", "count", "numbers"),
    [
        ([1, 2, 3, 4, 4], INT, 5, "number 0 of 0 to 4"),
        ([0, 5, 900, 0], INT, 901, "numbers 1-4, 6-899 of 0 to 900"),
        ([1, 1, 1], NAMED, 2, "cat"),
    ],
)
def test_classes_without_a_picture_are_named(values, feature, count, numbers):
    classes, labels, (note,) = read(values, feature)
    assert (len(classes), labels.tolist()) == (count, values)
    assert (note.what, note.count) == ("classes without a picture", count - len(set(values)))
    assert note.why == f"{numbers}; sampling draws them all the same"


@pytest.mark.parametrize("values", [[0, 1, 2], ["a", "b", "c"]])
def test_as_many_classes_as_rows(values):
    assert [note.what for note in read(values)[2]] == ["classes of one picture"]
    assert read(values, classes=list(map(str, values)))[2] == []  # of a validation split
    guess = choose({"id": INT})[2]
    with pytest.raises(BadInput, match=r"column id holds another number in every row; name .* label_column"):
        read(values, guessed=guess)


def test_numbers_that_are_no_classes():
    with pytest.raises(BadInput, match="no number of a class"):
        read([0, MOST_CLASSES])
    with pytest.raises(BadInput, match="no number of a class"):
        read(np.array([2**64 - 1], dtype=np.uint64))
    assert read([True, False])[:1] == (["False", "True"],)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (ClassLabel(names=["dog", "cat"]), r"is cat, dog in a, but dog, cat in b"),
        (INT, r"is cat, dog in a, but integers in b"),
        (TEXT, r"is cat, dog in a, but words in b"),
        (None, r"b has no column 'label', which a has"),
    ],
)
def test_files_of_a_split_must_agree(other, message):
    first = Features({"image": Image(), "label": NAMED})
    second = Features({"image": Image(), **({} if other is None else {"label": other})})
    check_same(["a", "c"], [first, first], "image", "label")
    with pytest.raises(BadInput, match=message):
        check_same(["a", "c", "b"], [first, first, second], "image", "label")
