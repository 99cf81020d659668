"""The whole pipeline on built-in data: two tokenizer stages, token cache, generator, samples, report."""

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alitok.studies.demo_plan import Plan

STEPS = ("classifier", "stage1", "stage2", "tokenize", "generator", "samples and measures")
# A little below 1: a generator of a few minutes gives rare wrong tokens more probability than they deserve.
TEMPERATURE = 0.9


def demo(
    out: Path,
    configs: Path,
    images: int,
    samples: int,
    classifier_steps: int,
    precision: str = "auto",
    minutes: float | None = None,
) -> None:
    """Run the parts of the pipeline that are missing.

    Args:
        out: folder for all output.
        configs: folder of the three YAML files; features.yaml, if there, is laid over the tokenizer's.
        images: number of images in the token cache.
        samples: number of measured samples.
        classifier_steps: training steps of the measuring network.
        precision: training precision; "auto" = the faster one here.
        minutes: time for everything, see `planned`.

    Raises:
        BadInput: an invalid configuration, or another command is running in the folder.
    """
    import torch

    from alitok.callbacks.progress import Progress
    from alitok.common.ends import alone_in
    from alitok.config import compose_run
    from alitok.studies.demo_plan import FLOOR, cut, planned
    from alitok.training.launch import quiet
    from alitok.training.launch import run as launch

    files = {"stage1": "tokenizer-stage1", "stage2": "tokenizer-stage2", "generator": "generator"}
    # composed first, so that errors show before anything is trained
    features = configs / "features.yaml"
    stages = {}
    for stage, name in files.items():
        overlays = [features] if features.is_file() and stage != "generator" else []
        stages[stage] = compose_run([configs / f"{name}.yaml", *overlays], ["--define.run", str(out)])
    with alone_in(out):
        quiet()
        sizes = {"images": images, "samples": samples, "classifier_steps": classifier_steps}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        plan = planned(out, stages, minutes, precision, device, sizes)
        print(
            f"Demo in {out}: {plan.precision}, {torch.get_num_threads()} threads, {plan.share:.0%} of the recipe's"
            f" steps, about {sum(plan.seconds.values()) / 60:.0f} minutes in all"
            + (f"; compiled: {', '.join(plan.compiled)}." if plan.compiled else "."),
            flush=True,
        )
        if plan.share == FLOOR:
            print(f"Fewer steps give no pictures, so this may take longer than {plan.minutes:g} minutes.", flush=True)
        for stage, config in stages.items():
            config["trainer"]["precision"] = plan.precision
            if stage in plan.compiled:
                config["model"]["init_args"]["compile_blocks"] = True
            cut(config, plan.share)

        clock = Clock(out / "seconds.json", plan)

        def train(stage: str) -> None:
            Progress.follows = plan.left(stage)
            try:
                with clock(stage):
                    launch("fit", stages[stage])
            finally:
                Progress.follows = None

        with clock("classifier"):
            classifier(out / "classifier", classifier_steps)
        train("stage1")
        train("stage2")
        with clock("tokenize"):
            cache_tokens(out, images)
        train("generator")
        with clock("samples and measures"):
            report(out, samples, plan, clock, configs)


class Clock:
    """Seconds of each step, stored in a file so that an interrupted demo still reports all of them."""

    def __init__(self, file: Path, plan: "Plan") -> None:
        self.file, self.plan = file, plan
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        from alitok.common.files import write_json

        start = time.perf_counter()
        left = self.plan.seconds.get(step, 0.0) + (self.plan.left(step) or 0.0)
        print(f"{STEPS.index(step) + 1} of {len(STEPS)}: {step} (about {left / 60:.0f} minutes left)", flush=True)
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start
            write_json(self.file, self.seconds)


def classifier(folder: Path, steps: int) -> None:
    """Train the small classifier that replaces Inception, unless its folder exists."""
    from alitok.data.reading import read_all
    from alitok.data.shapes import Shapes
    from alitok.evaluation.classifier import train_and_save

    if folder.is_dir():
        return
    images, labels = read_all(Shapes("train", count=6000, seed=1), 64)
    train_and_save(images, labels, 10, folder, steps, width=24, batch=64)


def cache_tokens(out: Path, images: int) -> None:
    """Write the ten-crop token cache of the training pictures with stage 1's encoder and codebook, unless it exists."""
    from alitok.artifacts.folder import load_tokenizer
    from alitok.data.encoding import tokenize
    from alitok.data.shapes import Shapes

    if (out / "tokens").is_dir():
        return
    tokenizer = load_tokenizer(out / "stage1" / "artifact")
    tokenize(tokenizer, Shapes("train", tokenizer.image_size, count=images), out / "tokens", batch=200)


def report(out: Path, count: int, plan: "Plan", clock: Clock, configs: Path) -> None:
    """Draw samples, measure, and write the page, even if they exist already."""
    import resource

    import torch
    from rich.console import Console
    from rich.table import Table

    from alitok.artifacts.folder import check_pair, load_generator, load_tokenizer
    from alitok.common.draw import Draw
    from alitok.common.files import write_json
    from alitok.common.images import save_grid, to_uint8
    from alitok.common.progress import counter
    from alitok.common.work import read_settings
    from alitok.data.reading import read_all
    from alitok.data.shapes import Shapes
    from alitok.evaluation.extractors import open_extractor
    from alitok.evaluation.fid import FeatureStatistics, frechet_distance
    from alitok.evaluation.generation import GenerationMetrics
    from alitok.evaluation.reconstruction import ReconstructionMetrics
    from alitok.reports.curves import read_curves
    from alitok.reports.page import write_report
    from alitok.reports.provenance import processor, versions
    from alitok.sampling.images import sample_images

    start = time.perf_counter()
    stages = [load_tokenizer(out / name / "artifact") for name in ("stage1", "stage2")]
    generator = load_generator(out / "generator" / "artifact")
    check_pair(generator, stages[1])
    size, names = stages[0].image_size, generator.card["class_names"]
    extractor = open_extractor(str(out / "classifier"), "cpu")

    # Two sets of pictures that no stage has seen: the reference, and one for the distance of real from real.
    held_out, _ = read_all(Shapes("val", size, count=count, seed=0), size)
    others, other_labels = read_all(Shapes("val", size, count=count, seed=1), size)
    reference, real = FeatureStatistics(extractor.num_features), FeatureStatistics(extractor.num_features)
    correct = 0
    for part, other, labels in zip(held_out.split(100), others.split(100), other_labels.split(100), strict=True):
        reference.update(extractor(part).pooled)
        features = extractor(other)
        real.update(features.pooled)
        correct += int((features.probabilities.argmax(1) == labels).sum())

    numbers: dict[str, Any] = {}
    copies = []
    for name, tokenizer in zip(("stage1", "stage2"), stages, strict=True):
        metrics = ReconstructionMetrics(extractor)
        for part in held_out[:500].split(100):
            images = part.float() / 255
            metrics.update(images, tokenizer.decode(tokenizer.encode(images)))
        for metric, value in metrics.compute().items():
            numbers[f"{metric}_{name}"] = value
        shown = held_out[:20].float() / 255
        copies.append(tokenizer.decode(tokenizer.encode(shown)))
    numbers["codebook_usage"] = stages[0].card["metrics"]["codebook_usage"]
    numbers["ar_accuracy"] = generator.card["metrics"]["token_accuracy"]

    generation = GenerationMetrics(extractor, reference)
    labels = [index % len(names) for index in range(count)]
    samples: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    taken: dict[str, list[str]] = {name: [] for name in names}  # the classifier's class of each sample
    first_ids = []
    batch = 100
    with counter("Sampling", -(-count // batch) * generator.num_tokens) as advance:
        for indices, ids, images in sample_images(
            generator,
            stages[1],
            labels,
            Draw.chosen(generator.card, temperature=TEMPERATURE, seed=0),
            batch=batch,
            on_step=lambda step: advance(1),
        ):
            pixels = to_uint8(images)
            generation.update(pixels)
            found = extractor(pixels).probabilities.argmax(1).tolist()
            first_ids.append(ids)
            for index, image, number in zip(indices, images, found, strict=True):
                samples[names[labels[index]]].append(image)
                taken[names[labels[index]]].append(names[number])
    results = generation.compute()
    numbers |= {
        "class_agreement": sum(found.count(name) for name, found in taken.items()) / count,
        "class_agreement_real": correct / count,
        "fid": results["fid"],
        "fid_real": frechet_distance(reference, real),
        "inception_score": results["inception_score"],
        "samples": count,
        "temperature": TEMPERATURE,
        "extractor": extractor.name,
        "comparable": False,
    }
    few = {name: torch.stack(images[:8]) for name, images in samples.items() if images}
    save_grid(
        torch.cat([torch.stack(list(row)) for row in zip(*few.values(), strict=False)]), out / "samples.png", 10, names
    )
    spent = clock.seconds | {"samples and measures": time.perf_counter() - start}
    numbers["seconds"] = {step: round(seconds, 1) for step, seconds in spent.items()}
    earlier = (read_settings(out / "report.json") or {}).get("peak_memory_bytes", 0)  # a repeat trains nothing
    numbers["peak_memory_bytes"] = max(earlier, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    write_json(out / "report.json", numbers)

    ids = torch.cat(first_ids)
    write_report(
        out / "report.html",
        originals=held_out[:20].float() / 255,
        stage1=copies[0],
        stage2=copies[1],
        samples=few,
        taken=taken,
        forming=[(names[labels[i]], *forming(stages[0], stages[1], ids[i])) for i in range(min(5, count))],
        curves={
            "Stage 1: causal decoder": read_curves(out / "stage1"),
            "Stage 2: bidirectional decoder": read_curves(out / "stage2"),
            "Generator": read_curves(out / "generator"),
        },
        numbers=numbers,
        seconds=spent,
        facts={
            "Data": f"{stages[0].card['data']}",
            "Tokens": f"{stages[0].num_tokens} an image, codebook of {stages[0].codebook_size}",
            "Parameters": ", ".join(
                f"{name} {sum(p.numel() for p in module.parameters()) / 1e6:.1f} M"
                for name, module in (("tokenizer", stages[1]), ("generator", generator))
            ),
            "Machine": f"{processor()}, {torch.get_num_threads()} threads",
            "Precision": plan.precision,
            "Steps": steps_in_words(plan),
            "Versions": versions(),
        },
        next_steps=[
            (
                "Look at the tokens in a browser and change them (docs/app.md; it needs pip install 'alitok[app]').",
                app_command(out),
            ),
            ("Draw more of two classes.", sample_command(out, "star,heart")),
            ("Send your own pictures through the tokenizer.", reconstruct_command(out)),
            (
                "Train on your own folder of class folders.",
                "make train-tokenizer DATA=path/to/folder EXPERIMENT=cifar10",
            ),
            (
                "Change one number, train again (six minutes), and lay both runs side by side.",
                f"{again_command(out, configs)}{as_trained(out)}\n{compare_command(out)}",
            ),
        ],
    )
    table = Table(title=f"{out / 'report.html'}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name in ("psnr_stage1", "psnr_stage2", "codebook_usage", "ar_accuracy", "class_agreement", "fid", "fid_real"):
        table.add_row(name, f"{numbers[name]:.3f}")
    Console().print(table)


def steps_in_words(plan: "Plan") -> str:
    """How much of the recipe was trained, and how to train all of it."""
    words = f"{plan.share:.0%} of the recipe's"
    if plan.minutes is not None:
        words += f", for {plan.minutes:g} minutes here"
    if plan.share < 1:
        words += "; --minutes 0 and another --out train all of them"
    return words


def app_command(out: Path) -> str:
    """The command that shows the demo's models in a browser."""
    generator, stage2, stage1 = (f"{out}/{name}/artifact" for name in ("generator", "stage2", "stage1"))
    return shlex.join(["alitok", "app", "--generator", generator, "--tokenizer", stage2, stage1])


def sample_command(out: Path, classes: str) -> str:
    """The command that draws more samples of these classes."""
    words = ["alitok", "sample", "--generator", f"{out}/generator/artifact", "--tokenizer", f"{out}/stage2/artifact"]
    words += ["--classes", classes, "--temperature", str(TEMPERATURE), "--out", f"{out}/more.png"]
    return shlex.join(words)


def as_trained(out: Path) -> str:
    """Options that give a generator the steps and the precision of the demo's."""
    from alitok.config import load_yaml

    config = load_yaml(out / "generator" / "config.yaml")
    steps = config["model"]["init_args"]["phases"]["main"]["steps"]
    return f" --model.phases.main.steps {steps} --trainer.precision {config['trainer']['precision']}"


def again_command(out: Path, configs: Path) -> str:
    """The command that trains a second generator, with another depth, on the demo's tokens.

    Args:
        configs: folder of the demo's configurations. The package's own has a short name in every folder.
    """
    from alitok.common.files import experiments_folder

    own = configs == experiments_folder() / "demo"
    file = "experiments/demo/generator.yaml" if own else f"{configs}/generator.yaml"
    words = ["alitok", "fit", "-c", file, "--define.cache", f"{out}/tokens"]
    words += ["--define.tokenizer", f"{out}/stage2/artifact", "--define.run", f"{out}-2"]
    return shlex.join([*words, "--model.generator.depth", "3"])


def compare_command(out: Path) -> str:
    """The command that compares the demo with the second generator."""
    return shlex.join(["alitok", "compare", str(out), f"{out}-2", "--out", "compare.html"])


def reconstruct_command(out: Path) -> str:
    """The command that sends a picture through the demo's tokenizer."""
    words = ["alitok", "reconstruct", "--tokenizer", f"{out}/stage2/artifact", "picture.jpg", "--out", f"{out}/mine"]
    return shlex.join(words)


def forming(stage1: Any, stage2: Any, ids: Any) -> tuple[list[int], Any]:
    """Frames of a picture that forms token by token, from ids (N,).

    Stage 1's decoder is causal, so each patch is final as soon as its token is known; until then it is gray. The first
    tokens are the prefix, whose head shows the first row. The last frame is stage 2's decoding.

    Returns:
        T token counts, and frames (T, 3, H, W).
    """
    import torch

    decoder = stage1.decoder
    with torch.no_grad():
        outputs = decoder(stage1.quantizer.lookup(ids[None]))
    image, strip = outputs["image"][0], outputs["prefix"][0]
    patch, prefix, total = strip.shape[1], decoder.num_prefix, len(ids)
    counts = sorted({1, 2, 4, prefix, *range(prefix, total, max(1, (total - prefix) // 8)), total})
    frames = []
    for count in counts:
        frame = torch.full_like(image, 0.5)
        row = min(count, decoder.rows)
        frame[:, :patch, : row * patch] = strip[:, :, : row * patch]
        for place in range(max(0, count - prefix)):
            y, x = divmod(place, decoder.rows)
            cell = (slice(None), slice(y * patch, (y + 1) * patch), slice(x * patch, (x + 1) * patch))
            frame[cell] = image[cell]
        frames.append(frame)
    frames[-1] = stage2.decode(ids[None])[0]
    return counts, torch.stack(frames)
