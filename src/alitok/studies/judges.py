"""A trial's measures of generators or tokenizers, in addition to the numbers in their cards."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from alitok.artifacts.folder import check_pair, load_generator, load_tokenizer
from alitok.common.build import import_class
from alitok.common.digest import module_digest
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.common.files import sha256, write_json
from alitok.common.images import to_uint8
from alitok.common.progress import counter
from alitok.data.encoding import tokenize
from alitok.data.reading import read_all
from alitok.data.sources import open_source
from alitok.evaluation.code_distance import CodeHistograms
from alitok.evaluation.extractors import open_extractor
from alitok.evaluation.fid import FeatureStatistics, frechet_distance, frechet_parts
from alitok.evaluation.reconstruction import ReconstructionMetrics
from alitok.evaluation.tokens import TokenAccuracy, replace_tokens
from alitok.reports.runs import read_json
from alitok.sampling.guidance import guidance_of
from alitok.sampling.images import sample_images
from alitok.studies.features import measure_features
from alitok.studies.probe import probe

FILE = "measures.json"  # in the run's folder, where `compare` and `trial` find it
REFERENCE_PICTURES = 10_000
# For tokenizers.
TRAIN, VAL = 10_000, 2_000  # pictures to train the probes, and pictures for every measure
WIDTH, DEPTH = 128, 4  # size of the small generator that learns the tokens


@dataclass(frozen=True)
class Judging:
    """How generators or tokenizers are measured after their training.

    Attributes:
        extractor: anything `open_extractor` takes.
        data: spec of the real pictures; generators are compared with their training split.
        tokenizer: artifact that decodes the samples of generators; None for tokenizers.
        samples: number of samples per FID of generators, with cycling classes.
        guidance: guidance scales for generators, 0 for none; one FID per scale.
        batch: images drawn or reconstructed together.
        probe_steps: training steps of the small generator that learns a tokenizer's tokens; 0 = no such generator.
    """

    extractor: str
    data: str
    tokenizer: str | None = None
    samples: int = 2000
    guidance: tuple[float, ...] = (0.0, 2.0)
    batch: int = 100
    probe_steps: int = 400


class Judge:
    """Measures finished runs, all in the same way."""

    def __init__(self, judging: Judging, device: torch.device) -> None:
        self.judging, self.device = judging, device
        self.extractor = open_extractor(judging.extractor, device)
        self.decided = asdict(judging) | {
            "guidance": list(judging.guidance),
            "extractor_digest": self.extractor.digest,
        }

    def measure(self, config: Mapping[str, Any], root: Path) -> None:
        """Write the measures of a run, unless they exist already.

        Args:
            config: the run's configuration.
            root: the run's folder, with its artifact.

        Raises:
            BadInput: a measure is not finite.
        """
        # a tokenizer's digest leaves its decoder out
        decided = self.decided | {"artifact": sha256(root / "artifact" / "model.safetensors")}
        if not (root / FILE).is_file() or read_json(root / FILE).get("decided") != decided:
            found = self.measures(config, root / "artifact")
            if wrong := [name for name, value in found.items() if not math.isfinite(value)]:
                raise BadInput(f"{root}: {wrong[0]} is not a finite number, so the run is not measured.")
            write_json(root / FILE, {**found, "decided": decided})

    def measures(self, config: Mapping[str, Any], artifact: Path) -> dict[str, float]:
        """The measures of one artifact, by name."""
        raise NotImplementedError


class GeneratorJudge(Judge):
    """Measures generators trained on the same tokens, all with the same pictures, seeds and scales."""

    def __init__(self, judging: Judging, device: torch.device) -> None:
        super().__init__(judging, device)
        assert judging.tokenizer is not None
        self.tokenizer = load_tokenizer(judging.tokenizer, device)
        self.decided |= {"tokenizer_digest": module_digest(self.tokenizer)}
        size = self.tokenizer.image_size
        source = open_source(judging.data, "train", size=size, count=REFERENCE_PICTURES)
        self.reference = FeatureStatistics(self.extractor.num_features)
        images, _ = read_all(source, size)
        encoded = []
        with torch.inference_mode():
            for part in images.split(judging.batch):
                self.reference.update(self.extractor(part).pooled)
                encoded.append(self.tokenizer.encode(part.to(device).float() / 255))
        self.ids = torch.cat(encoded)
        self.compared = min(judging.samples, len(images))
        self.length = 0

    @torch.inference_mode()
    def _decode_first(self, length: int) -> None:
        """Statistics of the same pictures through the tokenizer, and of their tokens.

        The distance to these is the generator's alone, if both have as many tokens.
        """
        if self.length == length:
            return
        self.length, ids = length, self.ids[:, :length]
        self.decoded = FeatureStatistics(self.extractor.num_features)
        for indices in torch.arange(len(ids)).split(self.judging.batch):
            decoded = self.tokenizer.decode(ids[indices], indices=indices.tolist())
            self.decoded.update(self.extractor(to_uint8(decoded)).pooled)
        self.codes = CodeHistograms(self.tokenizer.codebook_size, self.tokenizer.sub_codes)
        # as many pictures as samples, evenly spaced: sources may be sorted by class
        self.codes.update(ids[torch.arange(self.compared) * len(ids) // self.compared])

    def measures(self, config: Mapping[str, Any], artifact: Path) -> dict[str, float]:
        generator = load_generator(artifact, self.device)
        check_pair(generator, self.tokenizer)
        self._decode_first(generator.num_tokens)
        found = self._noisy_accuracy(config, generator) | {"rows_an_image": float(self._rows(generator))}
        for scale in self.judging.guidance:
            found |= self._fid(generator, scale)
        return found

    def _rows(self, generator: Any) -> int:
        label = torch.zeros(1, dtype=torch.int64, device=self.device)
        return len(guidance_of(self._draw(generator, max(self.judging.guidance))).branches(generator, label, 0, [0]))

    @staticmethod
    def _draw(generator: Any, scale: float) -> Draw:
        """The card's draw with this scale; a scale of 0 turns any rule off."""
        return Draw.chosen(generator.card, guidance=scale, seed=0)

    @torch.inference_mode()
    def _noisy_accuracy(self, config: Mapping[str, Any], generator: Any) -> dict[str, float]:
        """Accuracy and nats on the run's validation split, with a tenth of the input tokens replaced."""
        if not generator.output.has_logits:
            return {}
        data = import_class(config["data"]["class_path"])(**config["data"]["init_args"])
        data.setup("validate")
        accuracy = TokenAccuracy(generator.num_tokens)
        for batch in data.val_dataloader():
            tokens = batch["tokens"].to(self.device)
            read = replace_tokens(tokens, batch["index"].tolist(), generator.codebook_size)
            outputs = generator.losses(tokens, batch["label"].to(self.device), inputs=read)
            accuracy.update(outputs["logits"], tokens)
        found = accuracy.compute()
        return {"noisy_token_accuracy": found["token_accuracy"], "noisy_token_nats": found["token_nats"]}

    def _fid(self, generator: Any, scale: float) -> dict[str, float]:
        """FID to pictures, its parts, FID to decoded pictures, CHD, images per second, share of samples of their class.

        The share is included if the extractor has the generator's classes.
        """
        judging, right, seconds = self.judging, 0, 0.0
        statistics = FeatureStatistics(self.extractor.num_features)
        knows, codes = False, CodeHistograms(self.tokenizer.codebook_size, self.tokenizer.sub_codes)
        labels = [index % generator.num_classes for index in range(judging.samples)]
        draw = self._draw(generator, scale)
        steps = -(-judging.samples // judging.batch) * generator.num_tokens
        with counter(f"Samples, scale {scale:g}", steps) as advance:
            drawn = sample_images(
                generator, self.tokenizer, labels, draw, batch=judging.batch, on_step=lambda step: advance(1)
            )
            began = time.perf_counter()
            for indices, ids, images in drawn:
                pixels = to_uint8(images)
                seconds += time.perf_counter() - began
                codes.update(ids[[number for number, index in enumerate(indices) if index < self.compared]])
                features = self.extractor(pixels)
                statistics.update(features.pooled)
                knows = features.probabilities.shape[1] == generator.num_classes
                if knows:
                    wanted = torch.tensor([labels[index] for index in indices])
                    right += int((features.probabilities.argmax(1).cpu() == wanted).sum())
                began = time.perf_counter()
        found = frechet_parts(statistics, self.reference, f"gfid_{scale:g}")
        found[f"gfid_{scale:g}_decoded"] = frechet_distance(statistics, self.decoded)
        found |= {f"chd_{scale:g}": codes.distance(self.codes), f"images_a_second_{scale:g}": judging.samples / seconds}
        return found | ({f"class_agreement_{scale:g}": right / judging.samples} if knows else {})


class TokenizerJudge(Judge):
    """Measures tokenizers, all with the same pictures, extractor and probes."""

    def measures(self, config: Mapping[str, Any], artifact: Path) -> dict[str, float]:
        tokenizer = load_tokenizer(artifact, self.device)
        return self._pictures(tokenizer) | (self._probe(tokenizer) if self.judging.probe_steps else {})

    @torch.inference_mode()
    def _pictures(self, tokenizer: Any) -> dict[str, float]:
        """Reconstruction metrics, rFID and its parts, and the measures of `measure_features`."""
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
        """Train a small generator on the tokens: `probe_accuracy`, `probe_nats` per token and per picture, usage."""
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


def open_judge(judging: Judging, tokenizers: bool, device: torch.device) -> Judge:
    """The judge of tokenizers, or that of generators."""
    return (TokenizerJudge if tokenizers else GeneratorJudge)(judging, device)
