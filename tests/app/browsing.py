"""What the tests of the page do in a browser."""

import importlib.util
import json
import shutil
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

MISSING = [name for name in ("gradio", "selenium") if importlib.util.find_spec(name) is None]
MISSING += [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]


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


def close_messages(driver: Any) -> None:
    for button in all_of(driver, ".toast-close"):
        driver.execute_script("arguments[0].click()", button)
    until(lambda: not all_of(driver, ".toast-close"))
