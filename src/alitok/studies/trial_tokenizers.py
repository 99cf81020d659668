"""What a trial measures of its tokenizers, in addition to the numbers of their cards."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from alitok.artifacts.folder import load_tokenizer, read_card
from alitok.common.files import write_json
from alitok.data.encoding import tokenize
from alitok.data.reading import read_all
from alitok.data.sources import open_source
from alitok.evaluation.extractors import open_extractor
from alitok.evaluation.fid import frechet_parts
from alitok.evaluation.reconstruction import ReconstructionMetrics
from alitok.reports.runs import read_json
from alitok.studies.features import measure_features
from alitok.studies.probe import probe
from alitok.studies.trial import FILE, Judging

TRAIN, VAL = 10_000, 2_000  # pictures: for the probes to learn from, and for every measure
WIDTH, DEPTH = 128, 4  # of the small generator that learns the tokens


class TokenizerJudge:
    """Measures tokenizers by the same pictures, extractor and probes."""

    def __init__(self, judging: Judging, device: torch.device) -> None:
        self.judging, self.device = judging, device
        self.extractor = open_extractor(judging.extractor, device)

    def measure(self, config: Mapping[str, Any], root: Path) -> None:
        """Writes the measures of a run, if they are not there already.

        Args:
            root: its folder, with its artifact.
        """
        decided = asdict(self.judging) | {
            "artifact": read_card(root / "artifact")["digest"],
            "extractor_digest": self.extractor.digest,
        }
        decided["guidance"] = list(self.judging.guidance)
        if (root / FILE).is_file() and read_json(root / FILE).get("decided") == decided:
            return
        tokenizer = load_tokenizer(root / "artifact", self.device)
        write_json(root / FILE, {**self._pictures(tokenizer), **self._probe(tokenizer), "decided": decided})

    @torch.inference_mode()
    def _pictures(self, tokenizer: Any) -> dict[str, float]:
        """rFID and its parts, and what linear probes and changed pictures say of features and ids."""
        size = tokenizer.image_size
        train = read_all(open_source(self.judging.data, "train", size=size, count=TRAIN), size)
        val = read_all(open_source(self.judging.data, "val", size=size, count=VAL), size)
        metrics = ReconstructionMetrics(self.extractor)
        for start in range(0, len(val[0]), self.judging.batch):
            images = val[0][start : start + self.judging.batch].to(self.device).float() / 255
            indices = list(range(start, start + len(images)))
            metrics.update(images, tokenizer.reconstruct(images, indices=indices))
        found = frechet_parts(metrics.real, metrics.reconstructed, "rfid")
        return {**metrics.compute(), **found, **measure_features(tokenizer, train, val)}

    def _probe(self, tokenizer: Any) -> dict[str, float]:
        """What a small generator learns of the tokens: `probe_accuracy`, `probe_nats` a token and a picture."""
        size = tokenizer.image_size
        with TemporaryDirectory(prefix="alitok-trial-") as folder:
            train = open_source(self.judging.data, "train", size=size, count=TRAIN)
            tokenize(tokenizer, train, Path(folder) / "train", crops="center")
            val = open_source(self.judging.data, "val", size=size, count=VAL)
            tokenize(tokenizer, val, Path(folder) / "val", crops="center")
            found = probe(
                Path(folder) / "train",
                Path(folder) / "val",
                steps=self.judging.probe_steps,
                width=WIDTH,
                depth=DEPTH,
                device=str(self.device),
            )
        names = {
            "token_accuracy": "probe_accuracy",
            "token_nats": "probe_nats",
            "nats_per_picture": "probe_nats_a_picture",
            "codebook_usage": "probe_codebook_usage",
        }
        return {mine: found[name] for name, mine in names.items()}
