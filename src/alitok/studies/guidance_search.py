"""The search of `alitok tune-guidance`: stores features of every setting, computes FID with errors, refines."""

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from alitok.artifacts.folder import check_pair, load_generator, load_tokenizer
from alitok.common.distributed import all_or_none
from alitok.common.draw import Draw
from alitok.common.files import atomic_file, write_json
from alitok.common.images import to_uint8
from alitok.common.progress import bar
from alitok.common.work import Work, missing_runs, once, run_files, run_name
from alitok.evaluation.extractors import open_extractor
from alitok.evaluation.fid import jackknife_error, left_out_distances
from alitok.evaluation.inception_score import inception_score
from alitok.evaluation.protocol import is_spec, open_spec
from alitok.evaluation.reference import Reference, file_reference, refuse_for_samples, set_reference
from alitok.sampling.guidance import PowerCosine, guidance_class
from alitok.sampling.images import ImageSampler
from alitok.sampling.sets import NOT_DECIDING, common_batch, set_settings

# Settings of a search that may differ between runs in the same folder.
FREE = ("count", "guidance", "power", "schedule")

Setting = tuple[float, float]  # scale, power


@dataclass(frozen=True)
class Result:
    """FID of a setting with its standard error; `behind` = FID minus the best FID, with the error of the difference."""

    scale: float
    power: float | None
    fid: float
    fid_error: float
    behind: float
    behind_error: float
    inception_score: float | None


class Search:
    """Searches scales and powers for one generator, tokenizer, reference and extractor.

    Raises:
        BadInput: anything that cannot be read or does not fit, or a folder that belongs to another search.
    """

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device, self.folder = args, device, args.out
        self.extractor = open_extractor(args.extractor, device)
        self.generator = load_generator(args.generator, device)
        self.tokenizer = load_tokenizer(args.tokenizer, device)
        check_pair(self.generator, self.tokenizer)
        self.has_power = issubclass(guidance_class(args.schedule), PowerCosine)
        draw = self.draw = Draw.chosen(
            self.generator.card,
            guidance=args.scales[0],
            power=args.powers[0],
            schedule=args.schedule,
            temperature=args.temperature,
            seed=args.seed,
            precision=args.precision,
            compiled=args.compile,
            window=args.window,
            noise=args.noise,
        )
        names = (Path(args.generator).name, Path(args.tokenizer).name)
        settings = set_settings(self.generator, self.tokenizer, names, draw, args.count)
        self.classes = settings["num_classes"]
        self.settings = {key: value for key, value in settings.items() if key not in FREE}
        self.settings["extractor"] = {"name": self.extractor.name, "digest": self.extractor.digest}
        reference = self._open_reference()
        self.work = Work(self.folder, self.settings, "a search", free=NOT_DECIDING)
        self.work.share(list)
        pooled = reference.measured(self.extractor, 64, False, bar("Reference")).pooled
        assert pooled is not None
        self.reference = pooled  # the same on every process

    def _open_reference(self) -> Reference:
        if is_spec(self.args.reference):
            return set_reference(*open_spec(self.args.reference, "train", self.tokenizer.image_size))
        reference = file_reference(Path(self.args.reference), self.extractor)
        refuse_for_samples(reference)
        return reference

    def run(self) -> list[Result]:
        """Results of all settings, the best first. A collective."""
        grid = [(scale, power) for scale in self.args.scales for power in (self.args.powers if self.has_power else [1])]
        known: dict[Setting, list[float]] = {}
        self._measure(grid, known)
        for _ in range(self.args.refine):
            self._measure(self._around(min(known, key=lambda setting: known[setting][0]), known), known)
        return self._results(known)

    def _around(self, best: Setting, known: dict[Setting, list[float]]) -> list[Setting]:
        """Settings halfway (by ratio) between the best one and its neighbors; beyond the grid, a step further out."""
        new = []
        for axis in range(2 if self.has_power else 1):
            line = sorted({setting[axis] for setting in known})
            place = line.index(best[axis])
            step = (line[-1] / line[0]) ** (1 / max(1, len(line) - 1)) if len(line) > 1 else 2.0
            below = line[place - 1] if place else best[axis] / step**2
            above = line[place + 1] if place + 1 < len(line) else best[axis] * step**2
            for value in (below, above):
                setting = list(best)
                setting[axis] = float(f"{(value * best[axis]) ** 0.5:.4g}")
                setting[0] = max(1.0, setting[0])  # a scale of 1 is no guidance
                new.append((setting[0], setting[1]))
        return new

    def _measure(self, wanted: list[Setting], known: dict[Setting, list[float]]) -> None:
        """Add the FIDs of settings: FID of all images, then without each group in turn."""
        for scale, power in wanted:
            if (scale, power) in known:
                continue
            self._draw(scale, power)
            known[scale, power] = self._fids(scale, power)

    def _place(self, scale: float, power: float) -> Path:
        return self.folder / f"{self.args.schedule}-{scale:g}" / (f"power-{power:g}" if self.has_power else "")

    def _draw(self, scale: float, power: float) -> None:
        """Features of the images that are missing, each process its share."""
        draw = replace(self.draw, guidance=scale, power=power)
        batch = self.args.batch or common_batch(self.generator, self.tokenizer, draw)
        place = self._place(scale, power)
        there = [index for run, _ in run_files(place, ".npz") for index in run]
        mine = self.work.share(lambda: missing_runs(there, self.args.count, batch))
        with all_or_none():
            batches = [(run, [index % self.classes for index in run]) for run in mine]
            title = f"Scale {scale:g}" + (f", power {power:g}" if self.has_power else "")
            drawn = ImageSampler(self.generator, self.tokenizer, draw).sample(batches, size=batch)
            for indices, _, images in bar(title, len(batches))(drawn):
                features = self.extractor(to_uint8(images))
                name = f"{run_name(range(indices[0], indices[-1] + 1))}.npz"
                with atomic_file(place / name) as temporary, open(temporary, "wb") as file:
                    np.savez(
                        file,
                        pooled=features.pooled.cpu().numpy(),
                        probabilities=features.probabilities.cpu().numpy(),
                    )

    def _features(self, scale: float, power: float, name: str) -> torch.Tensor:
        """(count, F), in the order of the images."""
        rows: list[torch.Tensor] = []
        for file, skip in once(run_files(self._place(scale, power), ".npz")):
            with np.load(file) as arrays:
                rows.append(torch.from_numpy(arrays[name][skip:]))
        return torch.cat(rows)[: self.args.count]

    def _fids(self, scale: float, power: float) -> list[float]:
        return left_out_distances(self._features(scale, power, "pooled"), self.reference)

    def _results(self, known: dict[Setting, list[float]]) -> list[Result]:
        order = sorted(known, key=lambda setting: known[setting][0])
        best = known[order[0]]
        results = []
        for scale, power in order:
            fids = known[scale, power]
            behind = [ours - theirs for ours, theirs in zip(fids, best, strict=True)]
            probabilities = self._features(scale, power, "probabilities")
            score = inception_score(probabilities) if probabilities.shape[1] else None
            shown = power if self.has_power else None
            errors = jackknife_error(fids[1:]), jackknife_error(behind[1:])
            results.append(Result(scale, shown, fids[0], errors[0], behind[0], errors[1], score))
        return results


def report(results: list[Result], search: Search, path: Path) -> None:
    """Print the table and write the JSON: `settings`, `best`, `undecided` (within two errors of it), `results`, ..."""
    best = results[0]
    near = [result for result in results[1:] if result.behind < 2 * result.behind_error]
    content: dict[str, Any] = {
        "settings": {**search.settings, "schedule": search.args.schedule},
        "reference": str(search.args.reference),
        "count": search.args.count,
        "best": asdict(best),
        "undecided": [asdict(result) for result in near],
        "results": [asdict(result) for result in results],
    }
    write_json(path, content)
    table = Table(title=f"{search.args.schedule} guidance, {search.args.count:,} samples of each setting")
    for heading in ("scale", "power", "FID", "behind the best", "Inception Score"):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            f"{result.scale:g}",
            "" if result.power is None else f"{result.power:g}",
            f"{result.fid:.4g} ± {result.fid_error:.2g}",
            "" if result is best else f"{result.behind:.3g} ± {result.behind_error:.2g}",
            "" if result.inception_score is None else f"{result.inception_score:.2f}",
            style="bold" if result is best else "" if result in near else "dim",
        )
    Console().print(table)
    doubt = "" if not near else f"; {len(near)} other setting(s) lie within two standard errors of it: raise --count"
    print(f"Best: scale {best.scale:g}" + ("" if best.power is None else f", power {best.power:g}") + doubt)
