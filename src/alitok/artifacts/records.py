"""Reads evaluation records for a model card, and checks their values and their model."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from alitok.common.errors import BadInput

# key of a record -> usual spelling
METRICS = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "precision": "Precision",
    "recall": "Recall",
    "rfid": "rFID",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "codebook_usage": "Codebook usage",
}
# keys of a record on which its numbers depend
PROTOCOL = ("protocol", "resize", "quantisation", "guidance", "power", "schedule", "temperature", "seed", "keep")
LARGEST = 1e300  # bound of a number; neither infinity nor NaN is below it

Record = Mapping[str, Any]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def read_record(path: Path, card: Record) -> dict[str, Any]:
    """Reads an evaluation record of `alitok evaluate --json`.

    Raises:
        BadInput: the file is not a record, has an invalid value, or is of a different model than the card.
    """
    try:
        record = json.loads(path.read_text("utf-8"), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not readable JSON ({error}); give what `alitok evaluate --json` wrote.") from error
    if not isinstance(record, dict) or not isinstance(record.get("samples"), dict) or "measure" not in record:
        raise BadInput(f"{path} is no evaluation record; give what `alitok evaluate --json` wrote.")
    _check_values(record, path)
    _check_model(record, card, path)
    return record


def tie(record: Record, card: Record) -> str | None:
    """None if a record names the card's model by its digest; else a sentence for the model card."""
    if _digest(record, card["kind"]) is not None:
        return None
    if card["kind"] == "generator" and record["measure"] == "rFID":
        return "These numbers are of the generator's tokenizer."
    return f"Nothing ties these numbers to this model: the record names no {card['kind']} by its digest."


def numbers(record: Record) -> dict[str, float]:
    """The numbers of a record by metric."""
    return {key: float(record[key]) for key in METRICS if record.get(key) is not None}


def protocol(record: Record) -> dict[str, Any]:
    """The settings on which a record's numbers depend; names of sets and networks without their folders."""
    found = {key: record[key] for key in PROTOCOL if record.get(key) is not None}
    for key in ("reference", "extractor"):
        if (named := record.get(key)) is not None:
            found[key] = f"{Path(named['name']).name} ({named['digest'][:12]})"
    found["images"] = record["samples"].get("count")
    return found


def _digest(record: Record, key: str) -> str | None:
    digest: str | None = (record.get(key) or {}).get("digest")
    return digest


def _check_values(record: Record, path: Path) -> None:
    named = ("reference", "extractor", "generator", "tokenizer")
    reasons, count = record.get("reasons"), record["samples"].get("count")
    wrong = [(key, "a finite number") for key in METRICS if not _none_or(is_number, record.get(key))]
    wrong += [(key, "a map with a name and a digest") for key in named[:2] if not _none_or(_is_named, record.get(key))]
    # an unknown generator or tokenizer is named without a digest
    wrong += [(key, "a map of texts") for key in named[2:] if not _none_or(_is_map_of_texts, record.get(key))]
    wrong += [(key, "a text or a finite number") for key in PROTOCOL if not _none_or(_is_setting, record.get(key))]
    if not isinstance(record["measure"], str):
        wrong.append(("measure", "gFID or rFID"))
    if not (reasons is None or (isinstance(reasons, list) and all(isinstance(reason, str) for reason in reasons))):
        wrong.append(("reasons", "a list of sentences"))
    if not (count is None or (isinstance(count, int) and is_number(count))):
        wrong.append(("samples", "a map whose count is a whole number"))
    for key, wanted in wrong[:1]:
        shown = json.dumps(record[key])[:60]
        raise BadInput(f"{path} has {key} {shown}, which should be {wanted}; measure again.")


def _none_or(check: Callable[[Any], bool], value: Any) -> bool:
    return value is None or check(value)


def _is_map_of_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str | None) for item in value.values())


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("name", "digest"))


def _is_setting(value: Any) -> bool:
    return isinstance(value, str | dict) or is_number(value)


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _check_model(record: Record, card: Record, path: Path) -> None:
    kind, own = card["kind"], card.get("digest")
    found = _digest(record, kind)
    if found not in (None, own):
        raise BadInput(
            f"{path} measured the {kind} {found[:12]}, and this one is {str(own)[:12]}; give the record of this one."
        )
    if kind == "tokenizer":
        return
    own, found = card.get("tokenizer"), _digest(record, "tokenizer")
    # an rFID measures only the tokenizer, so it must be the generator's own
    if found not in (None, own) or (record["measure"] == "rFID" and found is None):
        raise BadInput(
            f"{path} measured the tokenizer {str(found)[:12]}, and the generator's is {str(own)[:12]}; give a record of"
            " the generator or of its own tokenizer."
        )
