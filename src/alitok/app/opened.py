"""The models that the app shows, by name: the folder or hub name from which they were read."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from alitok.artifacts.folder import check_pair, load_generator, load_tokenizer
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.models.generator import Generator
from alitok.models.tokenizer import Tokenizer
from alitok.sampling.guidance import SCHEDULES
from alitok.sampling.sets import class_names

GENERATOR = Path("runs/demo/generator/artifact")
TOKENIZERS = (Path("runs/demo/stage2/artifact"), Path("runs/demo/stage1/artifact"))
OF_CARD = "the card's"  # stands for a card's schedule without a short name


@dataclass(frozen=True)
class Opened:
    """Generators and tokenizers by name.

    Attributes:
        pairs: (generator, tokenizer) names that fit together; the app opens with the first.
        device: device of all models.
    """

    generators: dict[str, Generator]
    tokenizers: dict[str, Tokenizer]
    pairs: list[tuple[str, str]]
    device: torch.device

    def partners(self, generator: str) -> list[str]:
        """Names of the tokenizers that decode the generator's tokens."""
        return [tokenizer for own, tokenizer in self.pairs if own == generator]

    def schedules(self, generator: str) -> list[str]:
        """Schedules to choose from: those with a name, and the card's."""
        own = self.generators[generator].card.get("schedule")
        named = list(SCHEDULES)  # a list: the card may hold a class block, which is not hashable
        return [*named, *([OF_CARD] if own is not None and own not in named else [])]

    def labels(self, generator: str) -> list[str]:
        """Unique names of the generator's classes: classes that share a name get their numbers too."""
        names = class_names(self.generators[generator])
        often = Counter(names)
        labels = [name if often[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]
        once = len(set(labels)) == len(labels)  # a name may itself look like one with a number
        return labels if once else [f"{number}: {name}" for number, name in enumerate(names)]

    def recommended(self, generator: str) -> Draw:
        """The draw that the generator's card recommends."""
        return Draw.chosen(self.generators[generator].card)


def chosen_paths(generators: Sequence[str], tokenizers: Sequence[str]) -> tuple[list[str], list[str]]:
    """The paths to open: those given, else the demo's.

    Raises:
        BadInput: a generator without a tokenizer, or nothing is given and the demo's artifacts are missing.
    """
    if tokenizers:
        return list(dict.fromkeys(generators)), list(dict.fromkeys(tokenizers))
    if generators:
        raise BadInput("A generator's tokens need a tokenizer: give --tokenizer too.")
    if not (GENERATOR.is_dir() and TOKENIZERS[0].is_dir()):
        raise BadInput(
            f"There is no {GENERATOR} with {TOKENIZERS[0]} here: run `alitok demo` first, or give --generator and"
            " --tokenizer."
        )
    return [str(GENERATOR)], [str(path) for path in TOKENIZERS if path.is_dir()]


def open_models(generators: Sequence[str], tokenizers: Sequence[str], device: torch.device) -> Opened:
    """Read the artifacts and find out which fit together.

    Raises:
        BadInput: as `load_artifact`; or no tokenizer fits a generator.
    """
    opened = Opened(
        {name: load_generator(name, device) for name in generators},
        {name: load_tokenizer(name, device) for name in tokenizers},
        [],
        device,
    )
    for generator, network in opened.generators.items():
        reasons = []
        for tokenizer, decoder in opened.tokenizers.items():
            try:
                check_pair(network, decoder)
            except BadInput as error:
                reasons.append(error)
            else:
                opened.pairs.append((generator, tokenizer))
        if len(reasons) == len(opened.tokenizers):
            raise BadInput(f"No tokenizer fits {generator}. {reasons[0]}")
    return opened
