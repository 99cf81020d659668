"""The app in a real browser: generate, hover, swap a token, reconstruct, compare, reload an address."""

import json
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from browsing import MISSING, all_of, close_messages, open_tab, settings, source, tokens, until
from PIL import Image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"the app is tried in a browser, and {', '.join(MISSING)} cannot be found here"
    ),
]


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


def test_each_tab_keeps_its_own_address(address: str, browser: Any, tmp_path: Path) -> None:
    """A look at another tab, and work there, lose neither the picture of this one nor its tokens."""
    Image.new("RGB", (60, 60), "red").save(tmp_path / "red.png")
    browser.get(address + "?seed=3&class=star&tokens=8:4")
    until(lambda: all_of(browser, "#picture .token.chosen"))
    drawn = source(browser, "#picture img")
    generated = until(lambda: settings(browser).get("tokens") and settings(browser))
    assert (generated["tab"], generated["seed"], generated["class"]) == (["generate"], ["3"], ["star"])
    open_tab(browser, "Reconstruct")
    until(lambda: settings(browser)["tab"] == ["reconstruct"])
    assert "seed" not in settings(browser)
    all_of(browser, "#files input[type=file]")[0].send_keys(str(tmp_path / "red.png"))
    until(lambda: len(all_of(browser, "#rebuilt figure")) == 3)
    slider = all_of(browser, "#keep input[type=range]")[0]
    slider.send_keys("\ue012")  # arrow to the left
    rebuilt = until(lambda: settings(browser).get("keep") and settings(browser))
    open_tab(browser, "Compare")
    compared = until(lambda: settings(browser).get("model") and settings(browser))
    assert (compared["tab"], compared["seed"], compared["class"]) == (["compare"], ["3"], ["star"])
    until(lambda: all_of(browser, "#compare"))[0].click()
    until(lambda: len(all_of(browser, "#compared figure")) == 1)
    open_tab(browser, "Generate")
    until(lambda: settings(browser) == generated)
    open_tab(browser, "Reconstruct")
    until(lambda: settings(browser) == rebuilt)
    open_tab(browser, "Generate")
    until(lambda: settings(browser) == generated)
    browser.get(browser.current_url)
    until(lambda: all_of(browser, "#picture .token.chosen"))
    assert source(browser, "#picture img") == drawn


def test_ticked_tokenizers_come_back_from_the_address(address: str, browser: Any) -> None:
    browser.get(address + "?tab=compare&seed=3")
    boxes = until(lambda: all_of(browser, "#tokenizers input[type=checkbox]"))
    until(lambda: all_of(browser, "#compared figure"))
    assert [box.is_selected() for box in boxes] == [True, True]
    boxes[0].click()
    models = until(lambda: len(settings(browser).get("model", [])) == 2 and settings(browser)["model"])
    assert settings(browser)["seed"] == ["3"]
    browser.get(browser.current_url)
    until(lambda: all_of(browser, "#compared figure"))
    assert [box.is_selected() for box in all_of(browser, "#tokenizers input[type=checkbox]")] == [False, True]
    assert settings(browser)["model"] == models


def test_the_keyboard_reaches_every_token(address: str, browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()  # type: ignore[no-untyped-call]

    def place() -> Any:
        return browser.execute_script("return document.activeElement.dataset.place")

    Image.new("RGB", (60, 60), "red").save(tmp_path / "red.png")
    browser.get(address + "?tab=reconstruct")
    until(lambda: all_of(browser, "#files input[type=file]"))[0].send_keys(str(tmp_path / "red.png"))
    cells = until(lambda: all_of(browser, "#rebuilt .token"))
    browser.execute_script("arguments[0].focus()", cells[0])
    press(Keys.ARROW_LEFT)
    assert place() == "0"
    press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert place() == "5"  # of four columns
    press(Keys.ARROW_UP)
    assert place() == "1"
    assert [cell.get_attribute("tabindex") for cell in cells[:3]] == ["-1", "0", "-1"]
    press(Keys.ENTER)
    until(lambda: len(all_of(browser, "#rebuilt .about button[data-ids]")) == 8)
    press(Keys.TAB)
    assert place() is None  # the tokens that follow are no stops
    field = all_of(browser, "#rebuilt .about input")[0]
    assert browser.switch_to.active_element == field
    field.clear()
    field.send_keys("7", Keys.ENTER)
    until(lambda: all_of(browser, "#rebuilt .token.chosen"))
    assert json.loads(all_of(browser, "#rebuilt .token")[1].get_attribute("data-token"))["ids"] == [7]


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
