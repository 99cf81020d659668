"""The ladder's measures: one classifier's features, and the same pictures, samples and seeds for all rungs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import reduce
from torch import Tensor

from alitok.artifacts.folder import check_pair, load_generator, load_tokenizer
from alitok.common.devices import pick_device
from alitok.common.draw import Draw
from alitok.common.images import save_grid, to_uint8
from alitok.common.progress import counter
from alitok.common.random import stream
from alitok.data.reading import read_all
from alitok.data.sources import open_source
from alitok.data.token_cache import TokenCache
from alitok.evaluation.classifier import ClassifierExtractor, train_and_save
from alitok.evaluation.fid import FeatureStatistics, frechet_distance, jackknife_error, left_out_distances
from alitok.evaluation.inception_score import inception_score
from alitok.evaluation.reconstruction import ReconstructionMetrics, psnr
from alitok.evaluation.tokens import CodebookUsage, TokenAccuracy, replace_tokens
from alitok.networks.classifier import Classifier
from alitok.reports.curves import Curve
from alitok.reports.provenance import command, machine
from alitok.reports.runs import read_json
from alitok.sampling.images import sample_images
from alitok.studies.ladder_settings import Settings
from alitok.studies.probe import token_statistics

if TYPE_CHECKING:
    from alitok.models.generator import Generator
    from alitok.models.tokenizer import Tokenizer

BATCH = 100
REFERENCE_PICTURES = 10_000
CLASSIFIER_WIDTH = 48
STATISTICS = (
    "entropy",
    "entropy_given_class",
    "entropy_per_picture",
    "entropy_by_position",
    "codes_by_position",
    "codebook_perplexity",
)
# Guidance is chosen on samples of another seed, so that the reported number is not the luckiest of several.
TUNING_SEED, SEED = 1, 0


class Judge:
    """The measures of one ladder; the classifier and its statistics are made once and stored in its folder.

    Args:
        image_size: height and width of the pictures.
        rows: rows of patches, each with a token.

    Attributes:
        loss_classifier: folder of another classifier, for the perceptual loss; made if the settings ask for it.
        facts: facts about the measures for the results: settings, classifier with its accuracy, floor of the FID.
    """

    def __init__(self, settings: Settings, out: Path, image_size: int, rows: int) -> None:
        self.settings, self.rows = settings, rows
        self.device = pick_device("auto")
        held_out = open_source(settings.data, "val", size=image_size, count=settings.pictures)
        self.images, self.labels = read_all(held_out, image_size)
        self.class_names = held_out.class_names
        # shuffled, since folders are sorted by class and the first pictures are shown
        order = torch.randperm(len(self.images), generator=stream("ladder pictures"))
        self.images, self.labels = self.images[order], self.labels[order]
        self.loss_classifier = out / "loss-classifier"
        wanted = [(out / "classifier", CLASSIFIER_WIDTH, 0)]
        if settings.perceptual:  # the network that measures must not be the one that trained
            wanted.append((self.loss_classifier, CLASSIFIER_WIDTH // 2, 1))
        if missing := [item for item in wanted if not item[0].is_dir()]:
            images, labels = read_all(open_source(settings.data, "train", size=image_size), image_size)
            steps, classes = settings.classifier_steps, len(self.class_names)
            for folder, width, seed in missing:
                train_and_save(images, labels, classes, folder, steps, width, self.device, seed=seed)
        network = Classifier.load(out / "classifier")
        self.extractor = ClassifierExtractor(network, "ladder classifier", self.device)
        reference = out / f"reference-{self.extractor.digest[:12]}.npz"
        if not reference.is_file():
            source = open_source(settings.data, "train", size=image_size, count=REFERENCE_PICTURES)
            self._features(read_all(source, image_size)[0])[0].save(reference)
        self.reference = FeatureStatistics.load(reference)
        statistics, right = self._features(self.images, self.labels)
        self.facts: dict[str, Any] = {
            "settings": settings.record() | {"pictures": len(self.images)},
            "extractor": {
                "name": f"classifier of {settings.classifier_steps} steps on the training pictures of {settings.data}",
                "digest": self.extractor.digest,
                "features": self.extractor.num_features,
                "accuracy": right,
            },
            "fid_real": frechet_distance(statistics, self.reference),
            "comparable": False,
            "reasons": [
                "features of a classifier of our own, not of the 2015 Inception",
                f"{settings.samples:,} samples instead of 50,000",
            ],
        }

    def _features(self, images: Tensor, labels: Tensor | None = None) -> tuple[FeatureStatistics, float | None]:
        """Statistics of uint8 images, and, if labels are given, the share that the classifier gets right."""
        statistics, right = FeatureStatistics(self.extractor.num_features), 0
        for index, part in enumerate(images.split(500)):
            features = self.extractor(part)
            statistics.update(features.pooled)
            if labels is not None:
                right += int((features.probabilities.argmax(1).cpu() == labels.split(500)[index]).sum())
        return statistics, None if labels is None else right / len(images)

    def has_measured(self, folder: Path) -> bool:
        """Whether a rung's folder holds a row by this judge."""
        if not (folder / "row.json").is_file():
            return False
        return read_json(folder / "details.json").get("extractor", self.extractor.digest) == self.extractor.digest

    def measure(
        self, tokenizer_path: Path, generator_path: Path, folder: Path, tokens: Path
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The row of one rung, without its name and cost, and its details.

        Args:
            folder: folder for the rung's pictures.
            tokens: token cache on which the generator was trained.
        """
        tokenizer = load_tokenizer(tokenizer_path, self.device)
        generator = load_generator(generator_path, self.device)
        check_pair(generator, tokenizer)
        row, details = self._tokens_and_pictures(tokenizer, generator)
        details |= {"extractor": self.extractor.digest, "command": command(), "machine": machine()}
        details |= self._first_tokens(tokenizer, folder / "first-tokens.png")
        details |= self._reach(tokenizer)
        cache = TokenCache(tokens)
        statistics = token_statistics(cache, torch.arange(len(cache)), tokenizer.codebook_size)
        # the entropy a picture is what it costs without any context; tokens also get cheaper by saying less
        details |= {key: statistics[key] for key in STATISTICS}
        details["explained_nats"] = details["entropy_per_picture"] - details["nats_per_picture"]
        plain = self._fid(tokenizer, generator, 0.0, self.settings.samples, SEED)
        tried = {
            guidance: self._fid(tokenizer, generator, guidance, self.settings.tuning_samples, TUNING_SEED)["fid"]
            for guidance in self.settings.guidance
        }
        best = min(tried, key=lambda guidance: tried[guidance])
        guided = self._fid(tokenizer, generator, best, self.settings.samples, SEED)
        row |= {"gfid": plain["fid"], "gfid_guided": guided["fid"]}
        details |= {
            "gfid_error": plain["error"],
            "gfid_guided_error": guided["error"],
            "guidance": best,
            "gfid_by_guidance": {f"{guidance:g}": fid for guidance, fid in tried.items()},
            "inception_score": plain["inception_score"],
            "inception_score_guided": guided["inception_score"],
        }
        self._sample_grid(tokenizer, generator, best, folder / "samples.png")
        return row, details

    @torch.inference_mode()
    def _tokens_and_pictures(
        self, tokenizer: "Tokenizer", generator: "Generator"
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Fidelity, codebook usage and predictability on the held-out pictures."""
        metrics = ReconstructionMetrics(self.extractor)
        codes = CodebookUsage(tokenizer.codebook_size, tokenizer.sub_codes)
        accuracy, noisy = TokenAccuracy(tokenizer.num_tokens), TokenAccuracy(tokenizer.num_tokens)
        for places in torch.arange(len(self.images)).split(BATCH):
            pixels, labels = self.images[places].to(self.device).float() / 255, self.labels[places].to(self.device)
            ids = tokenizer.encode(pixels)
            codes.update(ids)
            metrics.update(pixels, tokenizer.decode(ids))
            accuracy.update(generator(ids, labels), ids)
            read = replace_tokens(ids, places.tolist(), tokenizer.codebook_size)
            noisy.update(generator.losses(ids, labels, inputs=read)["logits"], ids)
        pictures, usage, tokens = metrics.compute(), codes.compute(), accuracy.compute()
        by_position = accuracy.by_position()
        row = {
            "psnr": pictures["psnr"],
            "rfid": pictures["rfid"],
            "codebook_usage": usage["codebook_usage"],
            "ar_accuracy": tokens["token_accuracy"],
            "ar_loss": tokens["token_nats"],
        }
        details = {
            "ssim": pictures["ssim"],
            "image_accuracy": float(by_position[0][-(self.rows**2) :].mean()),
            "noisy_accuracy": noisy.compute()["token_accuracy"],
            "nats_per_picture": float(by_position[1].sum()),
            "accuracy_by_position": by_position[0].tolist(),
            "nats_by_position": by_position[1].tolist(),
        }
        return row, details

    @torch.inference_mode()
    def _first_tokens(self, tokenizer: "Tokenizer", path: Path) -> dict[str, Any]:
        """PSNR of pictures decoded from their first k tokens, the rest replaced by the mean code; saves a grid."""
        pixels = self.images[:200].to(self.device).float() / 255
        latents = tokenizer.quantizer.lookup(tokenizer.encode(pixels))
        mean = latents.mean(dim=(0, 1))
        total = tokenizer.num_tokens
        counts = sorted({*range(0, total, max(1, total // 8)), total})
        values, columns = {}, []
        for count in counts:
            cut = torch.cat([latents[:, :count], mean.expand(len(latents), total - count, -1)], dim=1)
            images = torch.cat([tokenizer.decoder(part)["image"].float() for part in cut.split(BATCH)]).clamp(0, 1)
            values[str(count)] = float(psnr(images, pixels).mean())
            columns.append(images[:8])
        grid = torch.stack([*columns, pixels[:8]], dim=1).flatten(0, 1)
        save_grid(grid, path, len(counts) + 1, [*map(str, counts), "original"])
        return {"psnr_by_first_tokens": values}

    @torch.inference_mode()
    def _reach(self, tokenizer: "Tokenizer") -> dict[str, Any]:
        """Where a token acts: the change in the picture when its code is replaced by the mean code.

        Shares of the squared change on the token's own patch and on patches before and after it, averaged over the
        rows^2 image tokens; for the prefix tokens, the share on the first row of patches.
        """
        rows = self.rows
        pixels = self.images[:100].to(self.device).float() / 255
        latents = tokenizer.quantizer.lookup(tokenizer.encode(pixels))
        mean, whole = latents.mean(dim=(0, 1)), tokenizer.decoder(latents)["image"].float()
        changes = []
        for token in range(tokenizer.num_tokens):
            cut = latents.clone()
            cut[:, token] = mean
            change = (tokenizer.decoder(cut)["image"].float() - whole).square()
            changes.append(reduce(change, "b c (h y) (w x) -> (h w)", "sum", h=rows, w=rows))
        shares = torch.stack(changes)
        shares = shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-12)
        prefix, image = shares[: -(rows**2)], shares[-(rows**2) :]
        reach = {
            "own": image.diagonal().mean(),
            "before": image.tril(-1).sum(1).mean(),
            "after": image.triu(1).sum(1).mean(),
        }
        if len(prefix):
            reach["prefix_on_first_row"] = prefix[:, :rows].sum(1).mean()
        return {"reach": {name: float(share) for name, share in reach.items()}}

    def _fid(
        self, tokenizer: "Tokenizer", generator: "Generator", guidance: float, count: int, seed: int
    ) -> dict[str, float]:
        """`fid`, its standard `error` and `inception_score` of `count` samples, classes cycling."""
        pooled, probabilities = [], []
        labels = [index % len(self.class_names) for index in range(count)]
        name = f"Samples, guidance {guidance:g}" if guidance else "Samples, no guidance"
        with counter(name, -(-count // BATCH) * generator.num_tokens) as advance:
            for _, _, images in sample_images(
                generator,
                tokenizer,
                labels,
                Draw(guidance, seed=seed),
                batch=BATCH,
                on_step=lambda step: advance(1),
            ):
                features = self.extractor(to_uint8(images))
                pooled.append(features.pooled.cpu())
                probabilities.append(features.probabilities.cpu())
        distances = left_out_distances(torch.cat(pooled), self.reference)
        score = inception_score(torch.cat(probabilities))
        return {"fid": distances[0], "error": jackknife_error(distances[1:]), "inception_score": score}

    def _sample_grid(self, tokenizer: "Tokenizer", generator: "Generator", guidance: float, path: Path) -> None:
        """Save a grid of eight samples for each of the first ten classes: four without guidance above four with it."""
        names = self.class_names[:10]
        labels = [label for _ in range(4) for label in range(len(names))]
        rows = [
            images.clamp(0, 1)
            for scale in (0.0, guidance)
            for _, _, images in sample_images(generator, tokenizer, labels, Draw(scale, seed=SEED))
        ]
        save_grid(torch.cat(rows), path, len(names), names)


def last_tenth(curves: Mapping[str, Curve]) -> dict[str, float] | None:
    """What validation gained in the last tenth of a generator's training: `accuracy` and `nats` a token.

    Between two validations the curve is taken as straight. None if the first one came later.
    """
    gains = {}
    for name, metric, sign in (("accuracy", "val/token_accuracy", 1), ("nats", "val/token_nats", -1)):
        steps, values = zip(*curves[metric], strict=True)
        start = 0.9 * steps[-1]
        if steps[0] > start:
            return None
        gains[name] = sign * (values[-1] - float(np.interp(start, steps, values)))
    return gains
