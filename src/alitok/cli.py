"""The command line, `alitok VERB ...`. Each verb is a file in commands/, imported when the verb is called."""

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from alitok.common.build import nearest
from alitok.common.ends import Terminated, drop_output, raise_on_sigterm
from alitok.common.errors import BadInput

# Errors of reading and writing files that the user can correct.
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO)

VERBS = {
    "demo": "the whole line on embedded data: tokenizer, generator, samples, a report",
    "doctor": "check a new machine: what is right, slow, missing or wrong",
    "fit": "train what a configuration describes (Lightning CLI)",
    "validate": "measure a trained run on the validation split (Lightning CLI)",
    "test": "the same on another split: --data.val_split test (Lightning CLI)",
    "describe": "what a run would cost (FLOPs, memory, hours; allocates nothing); --data: how a data set is read",
    "tokenize": "encode a data set to a token cache",
    "pairs": "what a generator writes along real images, for the post-training of a decoder",
    "sample": "draw pictures from a generator",
    "reconstruct": "send pictures through a tokenizer and back",
    "app": "look at models in a browser: generate, reconstruct, compare (needs alitok[app])",
    "evaluate": "FID, sFID, IS, precision, recall of samples; rFID, PSNR, SSIM of a tokenizer",
    "text-fidelity": "how much of small text survives a tokenizer: words drawn, reconstructed, read again",
    "train-classifier": "the network behind FIDs of your own, if Inception's file is missing",
    "trial": "ideas against their base over several seeds: trained, measured, one table",
    "league": "many ideas against their bases at a laptop's size: one table of what each changed",
    "check-idea": "test your own idea against the contract that the other parts rely on",
    "compare": "configurations, curves, pictures and numbers of several runs on one page",
    "ablation": "the ladder of the paper's ablation: train, measure and compare its rungs",
    "probe": "how predictable the tokens of a cache are, also of a cache made elsewhere",
    "reproduce": "published weights -> samples -> the published number, pass or fail",
    "tune-guidance": "search for the guidance scale and power with the least FID",
    "bench": "how fast the parts are, against a plain baseline and this machine's own limit",
    "publish": "upload an artifact to the Hugging Face hub, with a model card",
    "import-release": "turn a published weight file into an artifact",
    "export-release": "turn an artifact into a file in the published form",
}


class Parser(argparse.ArgumentParser):
    """Reports wrong usage in one line, without the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message}; see `{self.prog} --help`.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb.

    Exits with 0 on success, 2 for wrong usage or bad input, 130 after Ctrl-C, 143 after SIGTERM, 141 if the reader of
    its output has closed the pipe, 1 for a bug.
    """
    raise_on_sigterm()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names need not be UTF-8
            stream.reconfigure(errors="backslashreplace")
    try:
        run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        word, status = ("terminated", 143) if isinstance(error, Terminated) else ("interrupted", 130)
        _end(f"{word}; run the same command again to continue.", status)
    except BrokenPipeError:
        drop_output()
        sys.exit(141)
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # rich exits so if the pipe is closed
            raise
        drop_output()
        sys.exit(141)
    except (BadInput, OSError) as error:
        if os.environ.get("ALITOK_DEBUG") == "1":
            raise
        if isinstance(error, BadInput):
            _end(str(error), 2)
        if error.errno not in _OF_THE_DISK:
            raise
        place = error.filename or "a file"
        _end(f"Cannot write or read {place}: {error.strerror}; mend that and run the same command again.", 2)


def _end(sentence: str, status: int) -> NoReturn:
    print(f"alitok: {sentence}", file=sys.stderr)
    sys.exit(status)


def run(words: list[str]) -> None:
    """Runs the verb of the words after `alitok`. Raises BadInput if it is unknown."""
    if not words or words[0] in ("-h", "--help", "help"):
        print("usage: alitok VERB ...   (alitok VERB --help says more)\n")
        for verb, text in VERBS.items():
            print(f"  {verb:<18}{text}")
        return
    verb = words[0]
    if verb == "--version":
        from importlib.metadata import version

        print(version("alitok"))
        return
    if verb not in VERBS:
        raise BadInput(f"unknown verb {verb!r}{nearest(verb, VERBS)} (`alitok --help` lists them)")
    module = importlib.import_module(f"alitok.commands.{verb.replace('-', '_')}")
    parser = Parser(prog=f"alitok {verb}", description=module.__doc__, formatter_class=argparse.RawTextHelpFormatter)
    module.add_arguments(parser)
    if getattr(module, "TAKES_OVERRIDES", False):
        args, overrides = parser.parse_known_args(words[1:])
        args.overrides = overrides
    else:
        args = parser.parse_args(words[1:])
    module.run(args)
