"""The small artifacts, opened; the app that shows them, and a browser."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsing import requested

from alitok.app.opened import Opened, open_models


@pytest.fixture(scope="session")
def opened(artifacts: Path) -> Opened:
    names = [str(artifacts / name) for name in ("tokenizer", "stranger")]
    return open_models([str(artifacts / "generator")], names, torch.device("cpu"))


# The verb, under a hook that names each file that is opened to be written outside the temporary folder.
# A shell's background job ignores Ctrl-C, and so would the verb.
WATCHED = """import os, signal, sys, tempfile
signal.signal(signal.SIGINT, signal.default_int_handler)
place = os.path.realpath(tempfile.gettempdir())
def opened(event, arguments):
    if event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    path, mode, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[1] or "", arguments[2]
    writes = set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR)
    if writes and not path.startswith((place, "/dev/", "/proc/")):
        print("written:", path, file=sys.stderr)
sys.addaudithook(opened)
from alitok.cli import main
main()
"""


@pytest.fixture(scope="module")
def address(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The app on small models, in an empty folder that must stay empty."""
    place = tmp_path_factory.mktemp("place")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["app", "--generator", str(artifacts / "generator"), "--device", "cpu", "--port", str(port)]
    words += ["--tokenizer", str(artifacts / "tokenizer"), str(artifacts / "stranger")]
    log = (tmp_path_factory.mktemp("log") / "app.log").open("w+")
    app = subprocess.Popen(
        [sys.executable, "-B", "-c", WATCHED, *words],
        cwd=place,
        stdout=log,
        stderr=log,
        env=os.environ | {"HOME": "/nowhere"},
    )
    try:
        for _ in range(1500):  # a fresh install is read and compiled first
            log.seek(0)
            if "The app is at" in log.read() or app.poll() is not None:
                break
            time.sleep(0.2)
        assert app.poll() is None, log.read()
        yield f"http://127.0.0.1:{port}/"
        assert not list(place.iterdir())
    finally:
        app.send_signal(signal.SIGINT)
        try:
            assert app.wait(60) == 130
        finally:
            app.kill()
            log.seek(0)
            said = log.read()
            sys.stdout.write(said)
        assert "written:" not in said


@pytest.fixture
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})  # type: ignore[no-untyped-call]
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
        elsewhere = [place for place in requested(driver) if not place.startswith("http://127.0.0.1:")]
        assert not elsewhere
        assert not [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        driver.quit()
