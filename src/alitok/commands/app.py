"""Look at models in a browser: pictures that form token by token, reconstructions, comparisons.

Without options it opens the demo's artifacts. The page loads nothing from other machines. Uploads are stored in a
temporary folder, which is deleted when the app ends. Needs `pip install 'alitok[app]'`.
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
        help="tokenizer artifacts, or owner/name on the hub; every --generator needs its own (default: the demo's)",
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
    import sys

    from alitok.common.ends import Terminated

    try:
        show(args)
    except KeyboardInterrupt as error:  # the usual end of an app: nothing to continue
        sys.exit(143 if isinstance(error, Terminated) else 130)


def show(args: argparse.Namespace) -> None:
    """Open the models and serve the page until it is interrupted."""
    import importlib.util
    import os
    import tempfile

    import torch

    from alitok.common.errors import BadInput

    if args.port is not None and not 1 <= args.port <= 65535:
        raise BadInput(f"--port must be 1 to 65535, not {args.port}.")
    from alitok.app.opened import chosen_paths, open_models

    paths = chosen_paths(args.generator, args.tokenizer)
    if importlib.util.find_spec("gradio") is None:
        raise BadInput("The app needs gradio: pip install 'alitok[app]'.")
    check_address(args.host, args.port)

    from alitok.common.devices import pick_device

    device = pick_device(args.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as `alitok sample` draws; a reconstruction switches it off
    opened = open_models(*paths, device)
    if args.host not in LOOPBACK:
        print(
            f"alitok: listening on {args.host}: anyone who reaches this port can use the models and upload pictures.",
            flush=True,
        )
    with tempfile.TemporaryDirectory(prefix="alitok-app-") as folder:
        # gradio reads these when it is imported
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False", "GRADIO_TEMP_DIR": folder}
        os.environ.setdefault("MPLCONFIGDIR", folder)  # else it may write its list of fonts into the home folder
        os.environ["MPLBACKEND"] = "agg"  # otherwise gradio's query of the backend would import pyplot
        from alitok.app.read_only import import_read_only

        import_read_only()
        from alitok.app.page import serve

        serve(opened, args.host, args.port, LOOPBACK if args.host in LOOPBACK else ("*",))


def check_address(host: str, port: int | None) -> None:
    """Raise BadInput if the server cannot listen on the address: gradio would retry forever, or name its options."""
    import errno
    import socket

    from alitok.common.errors import BadInput

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            listener.bind(address)
            listener.listen()
    except (OSError, UnicodeError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code == errno.EADDRINUSE:
            raise BadInput(f"{host}:{port} is taken; choose another --port.") from error
        if code == errno.EACCES:
            raise BadInput(f"You may not listen on {host}:{port}; choose a --port above 1023.") from error
        raise BadInput(
            f"--host {host!r} is no address of this machine; give 127.0.0.1, 0.0.0.0 or one of its own addresses."
        ) from error
