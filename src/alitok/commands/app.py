"""Look at models in a browser: pictures that form token by token, reconstructions, comparisons.

Without options it opens the demo's artifacts. The page comes from this machine alone and loads nothing from elsewhere.
What is uploaded lies in a temporary folder, which goes when the app ends. Needs `pip install 'alitok[app]'`.
"""

import argparse

LOOPBACK = ("127.0.0.1", "localhost")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from alitok.commands.options import add_device_argument

    parser.add_argument(
        "--generator",
        metavar="DIR",
        nargs="+",
        default=[],
        help="generator artifacts, or owner/name on the Hugging Face hub (default: the demo's)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        nargs="+",
        default=[],
        help="tokenizer artifacts, or names on the hub; a generator's own must be among them",
    )
    parser.add_argument(
        "--host",
        default=LOOPBACK[0],
        metavar="ADDRESS",
        help="where to listen (default 127.0.0.1: this machine only; 0.0.0.0: everybody who reaches it)",
    )
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860")
    add_device_argument(parser)
    parser.epilog = (
        "example: alitok app\n"
        "         alitok app --generator runs/a/generator/artifact runs/b/generator/artifact"
        " --tokenizer runs/a/stage2/artifact   compares two generators"
    )


def run(args: argparse.Namespace) -> None:
    import importlib.util
    import os
    import tempfile

    from alitok.common.errors import BadInput

    if args.port is not None and not 1 <= args.port <= 65535:
        raise BadInput(f"--port must be 1 to 65535, not {args.port}.")
    from alitok.app.opened import chosen_paths

    paths = chosen_paths(args.generator, args.tokenizer)
    if importlib.util.find_spec("gradio") is None:
        raise BadInput("The app needs gradio: pip install 'alitok[app]'.")

    from alitok.app.opened import open_models
    from alitok.common.devices import pick_device

    opened = open_models(*paths, pick_device(args.device))
    if args.host not in LOOPBACK:
        print(
            f"alitok: listening on {args.host}: anyone who reaches this port can use the models and upload pictures.",
            flush=True,
        )
    with tempfile.TemporaryDirectory(prefix="alitok-app-") as folder:
        # read when gradio is imported
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "GRADIO_TEMP_DIR": folder}
        from alitok.app.page import serve

        serve(opened, args.host, args.port, LOOPBACK if args.host in LOOPBACK else ("*",))
