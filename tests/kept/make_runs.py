"""The runs of 0.1 whose artifacts, checkpoints and losses are kept, at sizes that step in milliseconds.

make.py calls it. It writes runs.json, losses.json, `files/artifacts` and `files/checkpoints`; all paths in them are
relative to the folder that a command runs in.
"""

import json
import lzma
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from kept_files import FILES, HERE, alitok_run, compose_run, lay_out, logged, outputs, random_cache, unpack
from make_stacks import Stack, bases, ideas, key, variants, write

SMALL = [
    "--trainer.callbacks.curves",
    "null",
    "--trainer.callbacks.grid",
    "null",
    "--trainer.callbacks.samples",
    "null",
]
SMALL += ["--trainer.callbacks.progress", "null", "--trainer.enable_progress_bar", "false"]
SMALL += ["--trainer.logger.tensorboard", "null", "--trainer.log_every_n_steps", "1", "--trainer.accelerator", "cpu"]
SMALL += ["--trainer.devices", "1", "--trainer.precision", "32-true", "--trainer.limit_val_batches", "0"]
SMALL += ["--model.warmup_steps", "0", "--data.global_batch", "4", "--data.micro_batch", "2", "--data.num_workers", "0"]
SHAPES = ["--define.source", "shapes", "--data.count", "16", "--data.val_count", "4"]
CODES = {
    "ideas/fsq": ["--define.levels", "[5, 4, 3]", "--define.codebook_size", "60", "--define.code_dim", "3"],
    "ideas/lfq": ["--define.codebook_size", "64", "--define.code_dim", "6"],
    "ideas/wetok": ["--define.sub_codes", "3", "--define.codebook_size", "16", "--define.code_dim", "12"],
    "ideas/fsq-generator": ["--define.codebook_size", "60"],
    "ideas/lfq-generator": ["--define.codebook_size", "64"],
    "ideas/wetok-generator": ["--define.sub_codes", "3", "--define.codebook_size", "16"],
}
NEAREST = ["--model.tokenizer.quantizer.anchor", "nearest"]
PATCH_GAN = "{class_path: alitok.losses.adversarial.PatchGAN, init_args: {widths: [8, 8]}}"
BLUR = "{class_path: alitok.losses.adversarial.BlurDiscriminator,"
BLUR += " init_args: {width: 8, stages: [8, 8], groups: 4, map_size: 4}}"
MAGVIT, HINGE = (f"{{class_path: alitok.losses.adversarial.{name}}}" for name in ("MagvitGAN", "HingeGAN"))
# A tokenizer needs so many steps to tell images apart. The last eight steps are adversarial, and the checkpoint lies
# before the last four.
TOKENIZER_STEPS, GENERATOR_STEPS, AFTER = 300, 32, 4
GAN_PHASES = "{continuous: {steps: 100, lr: 4.e-3}, main: {steps: 192, lr: [4.e-3, 1.e-3]},"
GAN_PHASES += " gan: {steps: 8, lr: [1.e-3, 1.e-4], adversarial: true}}"
AVERAGE = ["--trainer.callbacks.average.decay", "0.9"]
VALIDATED = ["--trainer.limit_val_batches", "1.0", "--trainer.val_check_interval", "4"]


def parts(width: int) -> list[str]:
    sizes = (("width", width), ("depth", 1), ("heads", 2))
    return [f"--model.tokenizer.{part}.{name}={value}" for part in ("encoder", "decoder") for name, value in sizes]


def tokenizer_words(stack: Stack, width: int = 16) -> list[str]:
    """4 x 4 patches of 4 pixels, and as many prefix tokens as the recipe has more than a row of patches, and a row."""
    define = compose_run(key(stack).split())["define"]
    prefix = 4 + max(0, define["num_prefix"] - define["image_size"] // define["patch_size"])
    prefix = prefix if define["num_prefix"] else 0
    words = ["--define.image_size", "16", "--define.patch_size", "4", "--define.num_prefix", str(prefix), *SHAPES]
    words += parts(width)
    if "ideas/titok" in stack:
        words += ["--define.num_latents", "8"]
    else:
        words += ["--model.tokenizer.encoder.num_latents", str(prefix + 16)]
    codes = [word for name in stack for word in CODES.get(name, [])]
    words += codes or ["--define.codebook_size", "32", "--define.code_dim", "4"]
    if "ideas/perturbation" in stack:
        words += ["--model.tokenizer.bottleneck.delta", "3"]
    return words


def generator_words(stack: Stack, width: int = 16) -> list[str]:
    words = [f"--model.generator.{name}={value}" for name, value in (("width", width), ("depth", 1), ("heads", 2))]
    codes = [word for name in stack for word in CODES.get(name, [])]
    if "ideas/latents-generator" in stack:
        words += ["--define.num_latents", "6"]
    return words + (codes or ["--define.codebook_size", "32"])


# Runs. Name -> stack, words beside those of the size, and the folder below the run's, for a mid-run checkpoint after
# `stop` of `steps` steps.
STAGE1, STAGE2, GENERATOR = ("demo/tokenizer-stage1",), ("demo/tokenizer-stage2",), ("demo/generator",)
ABLATION = ("ablation/tokenizer", "ablation/causal-encoder")


def over_stage1(*names: str) -> Stack:
    return (*STAGE1, *(f"ideas/{name}" for name in names))


# Their entropy leaves gradients that are rounding alone, of which Adam makes whole steps; these must be short.
ENTROPY = ["--model.phases.main.weights", "{vq: 0.005}", "--model.phases.gan.lr", "[1.e-4, 1.e-5]"]
RUNS: dict[str, tuple[Stack, list[str]]] = {
    "stage1": (STAGE1, [*NEAREST, "--model.discriminator", PATCH_GAN, "--model.adversarial", MAGVIT]),
    "stage1-average": ((*STAGE1, "options/average"), [*NEAREST, *AVERAGE, *VALIDATED]),
    "stage1-random-anchor": (STAGE1, []),
    "fsq": (over_stage1("fsq"), []),
    "lfq": (over_stage1("lfq"), ENTROPY),
    "wetok": (over_stage1("wetok"), ENTROPY),
    "titok": (over_stage1("titok"), NEAREST),
    "nested-dropout": (over_stage1("titok", "nested-dropout"), NEAREST),
    "tail-drop": (over_stage1("titok", "tail-drop"), NEAREST),
    "perturbation": (over_stage1("perturbation"), NEAREST),
    "causal-encoder": (ABLATION, NEAREST),
    "stage2": (STAGE2, [*NEAREST, "--model.discriminator", PATCH_GAN, "--model.adversarial", MAGVIT]),
    "stage2-average": ((*STAGE2, "options/average"), [*NEAREST, *AVERAGE]),
    "generator": (GENERATOR, []),
    "generator-average": ((*GENERATOR, "options/average"), [*AVERAGE, *VALIDATED]),
    "generator-dropout": (GENERATOR, ["--model.generator.dropout", "0.1"]),
    "softcfg": ((*GENERATOR, "ideas/softcfg"), ["--model.guidance", "3.0"]),
    "fsq-generator": ((*GENERATOR, "ideas/fsq-generator"), ["--define.cache", "tokens-fsq"]),
    "lfq-generator": ((*GENERATOR, "ideas/lfq-generator"), ["--define.cache", "tokens-lfq"]),
    "wetok-generator": ((*GENERATOR, "ideas/wetok-generator"), ["--define.cache", "tokens-wetok"]),
    "latents-generator": ((*GENERATOR, "ideas/latents-generator"), ["--define.cache", "tokens-tail-drop"]),
    "post-training": (
        (*STAGE2, "ideas/post-training"),
        [*NEAREST, "--model.discriminator", PATCH_GAN, "--model.adversarial", MAGVIT, "--define.pairs", "pairs"],
    ),
}
# What a later version may change on purpose, see README.md.
MARKS = {"stage1-random-anchor": "anchor: random", "generator-dropout": "dropout"}


def stop(name: str) -> int:
    """The step of the kept checkpoint."""
    return (GENERATOR_STEPS if RUNS[name][0][0] == GENERATOR[0] else TOKENIZER_STEPS) - AFTER


def run_words(name: str) -> list[str]:
    """The words after `-c FILE ...` of a kept run."""
    stack, more = RUNS[name]
    words = ["--define.run", f"runs/{name}", *SMALL]
    if any(item.endswith("generator") for item in stack):
        words += [
            *generator_words(stack),
            "--model.generator.grid",
            "[0, 0]" if name == "latents-generator" else "[4, 4]",
        ]
        words += [] if name == "latents-generator" else ["--define.num_prefix", "4"]
        words += [] if any(word.startswith("--define.cache") for word in more) else ["--define.cache", "tokens"]
        words += ["--model.phases", f"{{main: {{steps: {GENERATOR_STEPS}, lr: [2.e-2, 1.e-3]}}}}"]
    else:
        words += tokenizer_words(stack)
        words += ["--model.discriminator", BLUR, "--model.adversarial", HINGE]
        if name == "post-training":
            words += [
                "--model.phases.post.steps",
                str(TOKENIZER_STEPS),
                "--model.phases.post.lr",
                "[1.e-3, 1.e-4]",
                "--model.start_from",
                "artifacts/stage2",
            ]
        else:
            words += ["--model.phases", GAN_PHASES]
        if stack[0] == STAGE2[0] and name != "post-training":
            # what a discriminator has learned in stage 1 is carried over
            words += ["--model.phases.continuous", "null", "--model.phases.main.steps", "292"]
            words += ["--model.start_from", "artifacts/stage1" if name == "stage2" else "artifacts/stage1-average"]
    words += ["--trainer.callbacks.checkpoint.every_n_train_steps", str(stop(name))]
    return [*words, *more]


def needs(words: list[str]) -> list[str]:
    """What of `files/` a run reads."""
    return [word for word in words if word.startswith(("artifacts/", "tokens", "pairs")) and word != "tokens-random"]


def fit(stack: Stack, words: list[str], *more: str) -> Path:
    """Trains; the run's folder."""
    files = [word for file in key(stack).split() for word in ("-c", file)]
    alitok_run(["fit", *files, *words, *more])
    return Path(compose_run(key(stack).split(), [*words, *more])["trainer"]["default_root_dir"])


def given(artifact: Path) -> dict[str, Any]:
    """Inputs for `outputs`, from seed 0."""
    import alitok

    drawn = np.random.default_rng(0)
    if json.loads((artifact / "card.json").read_text())["kind"] == "tokenizer":
        tokenizer = alitok.load_tokenizer(artifact)
        images = {"images": drawn.integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)}
        return images | ({"keep": np.int64(3)} if getattr(tokenizer, "any_length", False) else {})
    generator: Any = alitok.load_generator(artifact)
    shape = (3, generator.num_tokens) + ((generator.sub_codes,) if generator.sub_codes else ())
    return {"tokens": drawn.integers(0, generator.codebook_size, shape), "labels": np.array([0, 3, 7])}


def keep_artifact(root: Path, name: str) -> None:
    folder = FILES / "artifacts" / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root / "artifact", folder)
    inputs = given(folder)
    np.savez_compressed(folder.with_suffix(".npz"), **inputs, **outputs(folder, inputs))


def keep_checkpoint(root: Path, name: str, step: int) -> None:
    target = FILES / "checkpoints" / f"{name}.ckpt.xz"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(lzma.compress((root / "checkpoints" / f"step={step}.ckpt").read_bytes(), preset=9))


def entry_of(name: str, words: list[str], root: Path) -> dict[str, Any]:
    """How a test takes up the run, and the losses of its steps after the checkpoint."""
    stack, step = RUNS[name][0], stop(name)
    entry = {"files": key(stack).split(), "words": words, "root": str(root), "stop": step, "needs": needs(words)}
    return {**entry, "losses": logged(root, step)} | ({"mark": MARKS[name]} if name in MARKS else {})


def make(name: str) -> dict[str, Any]:
    """Trains a kept run, and keeps its checkpoint, its artifact and its losses after the checkpoint."""
    shutil.rmtree(Path("runs") / name, ignore_errors=True)
    lay_out(Path(), *needs(run_words(name)))
    root = fit(RUNS[name][0], run_words(name))
    keep_checkpoint(root, name, stop(name))
    keep_artifact(root, name)
    return entry_of(name, run_words(name), root)


def runs(*names: str) -> None:
    for name in names:
        add("runs.json", name, make(name))


def add(file: str, name: str, entry: Any) -> None:
    path = HERE / file
    entries = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    write(path, {**entries, name: entry})


def shared_fit(rank: int, stack: Stack, words: list[str]) -> None:
    fit((*stack, "strategies/fsdp"), words, "--trainer.devices", "2")


def fsdp(name: str) -> None:
    """A checkpoint that two processes wrote under FSDP2, and where one process got from it."""
    from processes import two_processes

    stack, words, mine = RUNS[name][0], run_words(name), f"{name}-fsdp"
    words = [f"runs/{mine}" if word == f"runs/{name}" else word for word in words]
    shutil.rmtree(Path("runs") / mine, ignore_errors=True)
    lay_out(Path(), *needs(words))
    two_processes(shared_fit, stack, words)
    root = Path(compose_run(key(stack).split(), words)["trainer"]["default_root_dir"])
    keep_checkpoint(root, mine, stop(name))
    shutil.rmtree(root)
    unpack(mine, root / "checkpoints" / f"step={stop(name)}.ckpt")
    fit(stack, words)
    keep_artifact(root, mine)
    add("runs.json", mine, entry_of(name, words, root))


# Losses of the first steps of every stack.
EVERY = ["--define.run", "runs/losses", *SMALL, "--trainer.callbacks.checkpoint.every_n_train_steps", "1000"]


def loss_words(stack: Stack) -> list[str]:
    """Two steps of each phase, or three if it is the only one or two networks take turns; from fresh weights."""
    arguments = compose_run(key(stack).split())["model"]["init_args"]
    words = []
    for name, phase in arguments["phases"].items():
        steps = 3 if phase.get("adversarial") or len(arguments["phases"]) == 1 else 2
        words += [f"--model.phases.{name}.steps", str(steps)]
        if "tokenizer" in arguments:  # Adam makes whole steps of gradients that are nothing but rounding
            words += [f"--model.phases.{name}.lr", "2.e-5"]
    if "generator" in arguments:
        return [*words, *generator_words(stack), "--data.cache", "tokens-random"]
    words += tokenizer_words(stack)
    if arguments.get("start_from"):
        words += ["--model.start_from", "artifacts/stage2" if "ideas/post-training" in stack else "null"]
    if "ideas/post-training" in stack:
        words += ["--define.pairs", "pairs"]
    for name, small in (("PatchGAN", PATCH_GAN), ("BlurDiscriminator", BLUR)):
        if str((arguments.get("discriminator") or {}).get("class_path")).endswith(name):
            words += ["--model.discriminator", small]
    convnext = len(stack) == 1  # takes seconds an image
    for name in sorted(set(arguments["losses"]) & {"lpips", "convnext"}):
        if name == "convnext" and not convnext:
            words += ["--model.losses.convnext", "null"]
            words += [w for p in arguments["phases"] for w in (f"--model.phases.{p}.weights.convnext", "null")]
        else:
            words += [f"--model.losses.{name}.{'vgg_weights' if name == 'lpips' else 'weights'}", "random:0"]
    prefix = (arguments["losses"].get("prefix") or {}).get("init_args") or {}
    if "perceptual" in prefix:
        where = "--model.losses.prefix.perceptual"
        words += [f"{where}.weights", "random:0"] if convnext else [where, "null"]
    return words


def cache_words(stack: Stack, words: list[str]) -> dict[str, Any]:
    """Shape and codes of a cache that fits the stack's generator: two views of six images."""
    config = compose_run(key(stack).split(), words)
    model, keep = config["model"]["init_args"]["generator"]["init_args"], config["data"]["init_args"].get("keep")
    tokens = keep or model["num_prefix"] + model["grid"][0] * model["grid"][1]
    shape = [6, 2, tokens, *([model["sub_codes"]] if "sub_codes" in model else [])]
    return {"shape": shape, "codes": model["codebook_size"]}


# What draws from torch's own random numbers: how to do without, and the stacks that are kept with it too.
RANDOM = {
    "anchor: random": ('"anchor": "random"', NEAREST, [STAGE1, ("cifar10/tokenizer-stage1",), ABLATION[:1]]),
    "dropout": ('"dropout": 0.1', ["--model.generator.dropout", "0.0"], [("imagenet256/generator",)]),
}


def keep_losses(stack: Stack, words: list[str], mark: str | None = None) -> None:
    config = compose_run(key(stack).split(), [*EVERY, *words])
    shutil.rmtree("runs/losses", ignore_errors=True)
    entry: dict[str, Any] = {"files": key(stack).split(), "words": words, "needs": needs(words)}
    if "generator" in config["model"]["init_args"]:
        entry["tokens"] = cache_words(stack, [*EVERY, *words])
        random_cache(Path("tokens-random"), **entry["tokens"])
    lay_out(Path(), *entry["needs"])
    root = fit(stack, [*EVERY, *words])
    steps = 2 if mark == "anchor: random" else None  # then it is up to rounding which code is used by nobody and moves
    entry["losses"] = {name: values[:steps] for name, values in logged(root).items()}
    entry |= {"root": str(root)} | ({"mark": mark} if mark else {})
    add("losses.json", key(stack) + (f" ({mark})" if mark else ""), entry)


def losses() -> None:
    path = HERE / "losses.json"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    add("losses.json", "every", EVERY)
    for stack in [*bases(), *variants(), *ideas()]:
        if key(stack) in known:  # a second start continues
            continue
        words = loss_words(stack)
        for mark, (form, without, also) in RANDOM.items():
            if form in json.dumps(compose_run(key(stack).split(), [*EVERY, *words])["model"]):
                if stack in also:
                    keep_losses(stack, words, mark)
                words = [*words, *without]
        keep_losses(stack, words)
        print(key(stack), flush=True)
