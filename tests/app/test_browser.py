"""The app in a real browser: generate, hover, swap a token, reconstruct, compare, reload an address."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

MISSING = [name for name in ("gradio", "selenium") if importlib.util.find_spec(name) is None]
MISSING += [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"the app is tried in a browser, and {', '.join(MISSING)} cannot be found here"
    ),
]


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


def requested(driver: Any) -> list[str]:
    """Addresses that the page asked for."""
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    kinds = ("Network.requestWillBeSent", "Network.webSocketCreated")
    found = [event["params"] for event in events if event["method"] in kinds]
    places = [params["request"]["url"] if "request" in params else params["url"] for params in found]
    assert places
    return [place for place in places if not place.startswith(("data:", "blob:", "chrome:", "about:"))]


def until(wanted: Callable[[], Any], seconds: float = 120) -> Any:
    """What `wanted` gives as soon as it is true."""
    from selenium.common.exceptions import StaleElementReferenceException

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := wanted():
                return found
        except (StaleElementReferenceException, IndexError):  # drawn again between two looks
            pass
        time.sleep(0.1)
    raise AssertionError(f"nothing after {seconds} s")


def all_of(driver: Any, selector: str) -> list[Any]:
    return list(driver.find_elements("css selector", selector))


def source(driver: Any, selector: str) -> str:
    return str(all_of(driver, selector)[0].get_attribute("src"))


def tokens(driver: Any) -> list[dict[str, Any]]:
    cells = all_of(driver, "#picture .token")
    return [json.loads(cell.get_attribute("data-token")) for cell in cells]


def settings(driver: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(driver.current_url).query)


def open_tab(driver: Any, name: str) -> None:
    until(lambda: [tab for tab in all_of(driver, "button[role=tab]") if tab.text == name and tab.is_displayed()])[
        0
    ].click()


def test_generate_hover_swap_and_reload(address: str, browser: Any) -> None:
    from selenium.webdriver import ActionChains

    browser.get(address)
    until(lambda: len(all_of(browser, "#picture .token")) == 21)
    first = tokens(browser)
    picture = source(browser, "#picture img")

    ActionChains(browser).move_to_element(all_of(browser, "#picture .token")[8]).perform()  # type: ignore[no-untyped-call]
    about = until(
        lambda: (
            all_of(browser, "#picture .about p")[0].text.startswith("position 8,")
            and all_of(browser, "#picture .about p")[0].text
        )
    )
    assert f"id {first[8]['ids'][0]}, probability" in about

    all_of(browser, "#picture .token")[8].click()
    other = next(ids for ids, _ in first[8]["others"] if ids != first[8]["ids"])
    until(
        lambda: [
            b
            for b in all_of(browser, "#picture .about button")
            if json.loads(b.get_attribute("data-ids")) == other and b.is_enabled()
        ]
    )[0].click()
    until(lambda: len(all_of(browser, "#picture .token.chosen")) == 1 and len(all_of(browser, "#picture .token")) == 21)
    second = tokens(browser)
    assert [token["ids"] for token in second[:8]] == [token["ids"] for token in first[:8]]
    assert second[8]["ids"] == other
    changed = source(browser, "#picture img")
    assert changed != picture
    until(lambda: settings(browser).get("tokens") == [f"8:{other[0]}"])

    browser.get(browser.current_url)
    until(lambda: all_of(browser, "#picture .token.chosen"))
    assert source(browser, "#picture img") == changed

    all_of(browser, "#undo")[0].click()
    until(lambda: source(browser, "#picture img") == picture)
    until(lambda: "tokens" not in settings(browser))


def close_messages(driver: Any) -> None:
    for button in all_of(driver, ".toast-close"):
        driver.execute_script("arguments[0].click()", button)
    until(lambda: not all_of(driver, ".toast-close"))


def test_a_choice_is_of_the_picture_on_the_screen(address: str, browser: Any) -> None:
    browser.get(address + "?seed=3")
    until(lambda: len(all_of(browser, "#picture .token")) == 21)
    first = tokens(browser)
    seed = all_of(browser, "#seed input")[0]
    seed.send_keys("\ue009a\ue009", "4\t")  # Ctrl-A; and nothing is drawn yet
    assert seed.get_attribute("value") == "4"
    time.sleep(0.5)
    all_of(browser, "#picture .token")[8].click()
    other = next(ids for ids, _ in first[8]["others"] if ids != first[8]["ids"])
    offered = [b for b in all_of(browser, "#picture .about button") if json.loads(b.get_attribute("data-ids")) == other]
    offered[0].click()
    until(lambda: len(all_of(browser, "#picture .token.chosen")) == 1)
    assert [token["ids"] for token in tokens(browser)[:8]] == [token["ids"] for token in first[:8]]
    until(lambda: settings(browser).get("tokens") == [f"8:{other[0]}"])
    assert settings(browser)["seed"] == ["3"]
    all_of(browser, "#draw")[0].click()
    until(lambda: settings(browser)["seed"] == ["4"], 10)


@pytest.mark.parametrize(
    "query",
    [
        "guidance=50",
        "guidance=1e300",
        "temperature=1e-30",
        "power=0.000001",
        "tokens=500:1",
        "tokens=5:99999",
        "seed=99999999999999999999999",
        "tab=reconstruct&keep=1000",
        "tab=reconstruct&keep=-5",
        "tab=compare&keep=0&guidance=1e30",
        "class=<b>x</b><img src=x onerror=alert(1)>",
    ],
)
def test_an_odd_address_is_no_empty_page(address: str, browser: Any, query: str) -> None:
    browser.get(f"{address}?{query}")
    until(lambda: all_of(browser, "#picture .token"))
    taken = ("guidance", "temperature", "power")  # `alitok sample` takes these too
    if not query.startswith(taken):
        until(lambda: "The address" in all_of(browser, "body")[0].text)
    assert not all_of(browser, ".toast-body img")


def test_reconstruct(address: str, browser: Any, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 4), dtype=np.uint8)
    Image.fromarray(pixels, "CMYK").save(tmp_path / "print.jpg")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"?" * 90)
    browser.get(address + "?tab=reconstruct")
    field = until(lambda: all_of(browser, "#files input[type=file]"))[0]
    field.send_keys(f"{tmp_path / 'print.jpg'}\n{tmp_path / 'broken.png'}")
    until(lambda: len(all_of(browser, "#rebuilt figure")) == 3)
    assert [m.text for m in all_of(browser, "#rebuilt .message")] == [
        "Cannot read the image broken.png: its format is not known; replace or remove it."
    ]
    assert "PSNR" in all_of(browser, "#rebuilt figcaption")[1].text
    before = source(browser, "#rebuilt .over img")

    all_of(browser, "#rebuilt .token")[9].click()
    until(lambda: len(all_of(browser, "#rebuilt .about button[data-ids]")) == 8)
    all_of(browser, "#rebuilt .about button[data-ids]")[-1].click()
    until(lambda: all_of(browser, "#rebuilt .token.chosen"))
    assert source(browser, "#rebuilt .over img") != before
    assert "replaced tokens" in all_of(browser, "#rebuilt figcaption")[2].text

    all_of(browser, "#rebuilt .token")[9].click()  # the same cell again
    until(lambda: len(all_of(browser, "#rebuilt .about button[data-ids]")) == 8)
    field = all_of(browser, "#rebuilt .about input")[0]
    field.clear()
    field.send_keys("999")
    next(button for button in all_of(browser, "#rebuilt .about button") if button.text == "Replace").click()
    until(lambda: "999 is no token: give an id of 0 to 23" in all_of(browser, "body")[0].text)
    replaced = source(browser, "#rebuilt .over img")
    for wrong in ("abc", "-1", "5.0", ""):
        close_messages(browser)
        all_of(browser, "#rebuilt .token")[10].click()
        until(lambda: len(all_of(browser, "#rebuilt .about button[data-ids]")) == 8)
        field = all_of(browser, "#rebuilt .about input")[0]
        field.clear()
        field.send_keys(wrong)
        next(button for button in all_of(browser, "#rebuilt .about button") if button.text == "Replace").click()
        sentence = f"{wrong} is no token: give an id of 0 to 23".strip()
        until(lambda sentence=sentence: sentence in all_of(browser, "body")[0].text)
        assert len(all_of(browser, "#rebuilt figure")) == 3
        assert len(all_of(browser, "#rebuilt .token.chosen")) == 1
        assert source(browser, "#rebuilt .over img") == replaced


def test_first_tokens_stay_in_the_address(address: str, browser: Any, tmp_path: Path) -> None:
    Image.new("RGB", (60, 60), "red").save(tmp_path / "red.png")
    browser.get(address + "?tab=reconstruct&keep=7")
    until(lambda: all_of(browser, "#keep input[type=number]")[0].get_attribute("value") == "7")
    all_of(browser, "#files input[type=file]")[0].send_keys(str(tmp_path / "red.png"))
    until(lambda: "first tokens only" in all_of(browser, "#rebuilt figcaption")[1].text)
    slider = all_of(browser, "#keep input[type=range]")[0]
    slider.send_keys("\ue010")  # End
    until(lambda: "PSNR" in all_of(browser, "#rebuilt figcaption")[1].text)
    until(lambda: "keep" not in settings(browser))


def test_compare_and_reload(address: str, browser: Any, tmp_path: Path) -> None:
    browser.get(address)
    until(lambda: all_of(browser, "#picture .token"))
    open_tab(browser, "Compare")
    until(lambda: all_of(browser, "#compare"))[0].click()
    until(lambda: len(all_of(browser, "#compared figure")) == 1)
    until(lambda: settings(browser).get("model"))
    drawn = source(browser, "#compared img")
    Image.new("RGB", (60, 60), "red").save(tmp_path / "red.png")
    all_of(browser, "#file input[type=file]")[0].send_keys(str(tmp_path / "red.png"))
    until(lambda: len(all_of(browser, "#through figure")) == 3)

    browser.get(browser.current_url)
    until(lambda: all_of(browser, "#compared figure"))
    assert settings(browser)["tab"] == ["compare"]
    assert source(browser, "#compared img") == drawn


@pytest.mark.parametrize("tab", ["generate", "reconstruct", "compare"])
def test_a_narrow_window_needs_no_scrolling_to_the_side(address: str, browser: Any, tab: str) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(f"{address}?tab={tab}")
    until(lambda: all_of(browser, "button[role=tab][aria-selected=true]"))
    time.sleep(1)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


def test_another_name_of_this_machine_is_refused(address: str) -> None:
    port = urlsplit(address).port
    for host, status in ((f"127.0.0.1:{port}", 200), ("evil.example", 400)):
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/", headers={"Host": host})
        assert connection.getresponse().status == status


def test_an_address_that_asks_for_what_is_not_there(address: str, browser: Any) -> None:
    browser.get(address + "?class=unicorn")
    until(lambda: "The address has class 'unicorn'" in all_of(browser, "body")[0].text)
    until(lambda: all_of(browser, "#picture .token"))
