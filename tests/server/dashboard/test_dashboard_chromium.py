"""The dashboard in a real Chromium: wide and narrow, light and dark, with and without scripts."""

from __future__ import annotations

import base64
import importlib.util
import io
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from pfl_mobile.bundle import Bundle
from pfl_server.dashboard.access import SESSION_COOKIE
from pfl_server.dashboard.sign_in import SESSION_S, Sessions
from pfl_server.federation.config import FederationConfig
from pfl_server.identity import credentials
from pfl_server.services import Services
from pfl_server.settings import ServerSettings
from pfl_server.storage.models import Assignment, AuditEntry, EnrolledDevice, Federation, Version
from tests.server.conftest import ADMIN_TOKEN, GENEROUS, missing, serving
from tests.server.filled import fill, filled_config

pytestmark = pytest.mark.slow

PAGES = ("/", "/rounds", "/rounds/30", "/rounds/20", "/versions", "/privacy", "/devices", "/tokens", "/audit")
SIZES = {"desktop": (1280, 900), "phone": (360, 740)}

#: Contrast of every visible text with what lies behind it, after WCAG 2.2; those below 4.5 (3 for large letters).
CONTRAST = """
const rgb = (c) => { const p = c.match(/[\\d.]+/g).map(Number); return [p[0], p[1], p[2], p[3] ?? 1]; };
const light = (c) => { const f = c.slice(0, 3).map((v) => { v /= 255;
  return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
  if (c[3] === 1) return c; } return rgb(getComputedStyle(document.documentElement).backgroundColor); };
const weak = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let checked = 0;
while (walker.nextNode()) {
  const e = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || e.closest("title, script, .hidden, .skip, option")) continue;
  if (!e.checkVisibility()) continue;
  const s = getComputedStyle(e), size = parseFloat(s.fontSize);
  const front = light(rgb(e.closest("svg") ? s.fill : s.color)), back = light(behind(e));
  const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
  const large = size >= 24 || (size >= 18.66 && s.fontWeight >= 700);
  checked += 1;
  if (ratio < (large ? 3 : 4.5)) weak.push([walker.currentNode.data.trim(), ratio.toFixed(2)]);
}
return [checked, weak];
"""


@pytest.fixture(scope="module")
def open_browser() -> Iterator[Callable[..., Any]]:
    """Opens browsers: width, height, dark, scripts."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        missing("Chromium with its driver")
    if importlib.util.find_spec("selenium") is None:
        missing("the package selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    opened = []

    def open_one(size: str = "desktop", *, dark: bool = False, scripts: bool = True) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = str(browser)
        for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(argument)
        if not scripts:
            options.add_experimental_option(
                "prefs", {"profile.managed_default_content_settings.javascript": 2}
            )
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        found = webdriver.Chrome(options=options, service=Service(str(driver)))
        opened.append(found)
        width, height = SIZES[size]
        found.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        found.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        return found

    yield open_one
    for found in opened:
        found.quit()


@pytest.fixture(scope="module")
def federation_config() -> FederationConfig:
    return filled_config()


@pytest.fixture(scope="module")
def site(
    tmp_path_factory: pytest.TempPathFactory, federated_folder: Path, federation_config: FederationConfig
) -> Iterator[tuple[str, Services]]:
    """The address of a filled server, and its services."""
    settings = ServerSettings(
        bundle=federated_folder, data=tmp_path_factory.mktemp("site"), limits=GENEROUS, dashboard="admin"
    )
    with Bundle.open(federated_folder) as bundle:
        services = Services.open(settings, bundle, federation_config, admin_token=ADMIN_TOKEN)
        fill(services)
        with serving(services, coordinate=False) as url:
            yield url, services


@pytest.fixture(scope="module")
def cookie(site: tuple[str, Services]) -> str:
    """The cookie of an admin; each test would else count as another attempt to sign in."""
    services = site[1]
    with services.database.read() as session:
        secret = credentials.key(session.get_one(Federation, 1).secrets, "sessions")
    return Sessions(secret, ADMIN_TOKEN, services.clock).new("session", SESSION_S)


def signed_in(driver: Any, url: str, cookie: str) -> Any:
    """The browser, on the overview as an admin."""
    driver.get(url + "/sign-in")
    driver.add_cookie(
        {"name": SESSION_COOKIE, "value": cookie, "path": "/", "httpOnly": True, "sameSite": "Strict"}
    )
    driver.get(url + "/")
    assert _one(driver, ".who").text == "Sign out"
    return driver


def _one(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def screenshot(driver: Any, width: int) -> Any:
    """The whole page as a picture."""
    from PIL import Image

    height = driver.execute_script("return document.documentElement.scrollHeight")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return Image.open(io.BytesIO(base64.b64decode(taken["data"]))).convert("RGB")


def complaints(driver: Any) -> list[str]:
    """What the browser's console says: errors, also of the content policy."""
    return [entry["message"] for entry in driver.get_log("browser")]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_every_page_fits_and_is_readable(
    site: tuple[str, Services], cookie: str, open_browser: Callable[..., Any], size: str, dark: bool
) -> None:
    url = site[0]
    driver = signed_in(open_browser(size, dark=dark), url, cookie)
    width = SIZES[size][0]
    for path in (*PAGES, "/versions/20/roll-back", "/sign-in", "/rounds/999"):
        driver.get(url + path)
        driver.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        wide = driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} wide"
        beyond = driver.execute_script(
            "return [...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll, svg, .hidden') && "
            "e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 120))"
        )
        assert beyond == [], path
        checked, weak = driver.execute_script(CONTRAST)
        assert checked > 10
        assert weak == [], path
    expected = [m for m in complaints(driver) if "/rounds/999" not in m]  # 404, as it must be
    assert expected == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_charts_are_drawn(
    site: tuple[str, Services], cookie: str, open_browser: Callable[..., Any], size: str, dark: bool
) -> None:
    url = site[0]
    driver = signed_in(open_browser(size, dark=dark), url, cookie)
    for path, kinds in (("/", ("global", "personalized", "worst")), ("/privacy", ("personalized",))):
        driver.get(url + path)
        picture = screenshot(driver, SIZES[size][0])
        shown = [c for c in driver.find_elements("css selector", "svg.chart") if c.is_displayed()]
        assert len(shown) == 1, "one of the two sizes"
        box = shown[0].rect
        assert box["width"] > 0.8 * min(SIZES[size][0], 1000) - 60
        assert box["height"] > 150
        part = picture.crop(
            tuple(int(v) for v in (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]))
        )
        colours = {colour: n for n, colour in part.getcolors(1 << 24)}
        for kind in kinds:
            css = driver.execute_script(
                "return getComputedStyle(document.querySelector('.chart .line.' + arguments[0])).stroke", kind
            )
            red, green, blue = (int(v) for v in css.removeprefix("rgb(").rstrip(")").split(","))
            assert colours.get((red, green, blue), 0) > 60, f"no {kind} line is seen on {path}"
        letters = driver.execute_script(
            "const t = arguments[0].querySelector('text'); return t.getBoundingClientRect().height", shown[0]
        )
        assert letters >= 9, "letters of the chart are too small to read"


@pytest.mark.parametrize("size", SIZES)
def test_the_documentation_of_the_api_is_drawn_from_this_server_alone(
    site: tuple[str, Services], open_browser: Callable[..., Any], size: str
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    url, driver = site[0], open_browser(size)
    driver.get(url + "/docs")
    endpoints = WebDriverWait(driver, 30).until(lambda d: d.find_elements("css selector", ".opblock-summary"))
    assert len(endpoints) > 15
    driver.execute_script("arguments[0].querySelector('button').click()", endpoints[0])
    body = WebDriverWait(driver, 30).until(lambda d: d.find_elements("css selector", ".opblock-body"))
    assert "200" in body[0].text
    _one(driver, ".try-out__btn").click()
    _one(driver, ".execute").click()
    live = WebDriverWait(driver, 30).until(
        lambda d: d.find_elements("css selector", ".live-responses-table .response-col_status")
    )
    assert live[-1].text.startswith("200")
    loaded = driver.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert loaded
    assert [address for address in loaded if not address.startswith((url, "data:"))] == []
    assert complaints(driver) == []


def test_the_overview_refreshes_itself(
    site: tuple[str, Services], cookie: str, open_browser: Callable[..., Any]
) -> None:
    url, services = site
    driver = signed_in(open_browser(), url, cookie)
    sentence = _one(driver, ".sentence").text
    with services.database.write() as session:
        task = session.scalars(
            select(Assignment).where(Assignment.round == 30, Assignment.state == "assigned").limit(1)
        ).one()
        task.state = "accepted"
    driver.execute_script("document.querySelector('#live details').open = true")
    driver.execute_async_script("refresh().then(arguments[arguments.length - 1])")
    assert "31 of 50" in sentence
    assert "32 of 50" in _one(driver, ".sentence").text
    assert driver.execute_script("return document.querySelector('#live details').open"), (
        "what was open stays open"
    )
    driver.delete_all_cookies()
    driver.execute_script("document.getElementById('live').dataset.every = 0.05; again(0)")
    until = time.monotonic() + 10
    while not driver.execute_script("return live.classList.contains('old')"):
        assert time.monotonic() < until, "that the numbers are old is not told"
        time.sleep(0.05)


def test_an_admin_acts_without_scripts(site: tuple[str, Services], open_browser: Callable[..., Any]) -> None:
    driver, (url, services) = open_browser(scripts=False), site
    driver.get(url + "/versions")
    _one(driver, "input[name=token]").send_keys("not the token, though it is as long as one must be")
    _press(driver, "main button")
    assert "This is not the admin token" in _one(driver, "main").text
    _one(driver, "input[name=token]").send_keys(ADMIN_TOKEN)
    _press(driver, "main button")
    assert driver.current_url == url + "/versions", "where one wanted to go"
    served = _state(services)[1]
    _press(driver, "a[href$='/roll-back']")
    _one(driver, "main button").click()
    assert _one(driver, "input[name=sure]:invalid"), "the box must be ticked first"
    _one(driver, "input[name=note]").send_keys("groups got worse")
    _one(driver, "input[name=sure]").click()
    _press(driver, "main button")
    assert driver.current_url == url + "/versions"
    assert _state(services) == ("running", served + 1)
    driver.get(url + "/")
    _press(driver, ".steer button")
    assert _one(driver, ".sentence").text.startswith("Paused:")
    _press(driver, ".steer button")
    driver.get(url + "/devices")
    with services.database.read() as session:
        device = session.scalars(
            select(EnrolledDevice.id).where(EnrolledDevice.state == "active").limit(1)
        ).one()
    _one(driver, "input[name=device]").send_keys(device)
    _press(driver, "main form button")
    _one(driver, "input[name=sure]").click()
    _press(driver, "button.danger")
    assert _one(driver, "h3 .state").text == "revoked"
    driver.get(url + "/tokens")
    _press(driver, ".fields button")
    assert _one(driver, ".secret").text.startswith("pfl_enrol_")
    with services.database.read() as session:
        done = list(session.scalars(select(AuditEntry.action).order_by(AuditEntry.id.desc()).limit(5)))
        note = session.scalars(select(Version.note).order_by(Version.number.desc()).limit(1)).one()
    assert done == ["create-token", "revoke-device", "resume", "pause", "roll-back"]
    assert note.endswith(": groups got worse")
    _press(driver, ".who button")
    assert "/sign-in" in driver.current_url
    assert [m for m in complaints(driver) if "403" not in m] == []  # the wrong token


def _press(driver: Any, selector: str) -> None:
    """Click, and wait for the next page."""
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.expected_conditions import staleness_of
    from selenium.webdriver.support.ui import WebDriverWait

    before = _one(driver, "html")
    _one(driver, selector).click()
    # between two pages the driver also fails in other ways than by saying that the element is gone
    WebDriverWait(driver, 20, ignored_exceptions=[WebDriverException]).until(staleness_of(before))
    WebDriverWait(driver, 20).until(lambda d: d.find_elements("css selector", "footer"))


def _state(services: Services) -> tuple[str, int]:
    with services.database.read() as session:
        found = session.get_one(Federation, 1)
        return found.state, found.version
