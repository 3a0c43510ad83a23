# This file is part of meas_maskrcnn.
#
# SPDX-License-Identifier: GPL-3.0-or-later

"""The page on an evaluation in a real browser, by mouse and keyboard; skipped where there is none."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from evaluation_sample import make_sample

from lsst.meas.maskrcnn.metrics.run_comparison import compare_runs
from lsst.meas.maskrcnn.report.evaluation_report import ReportContext, evaluation_page
from lsst.meas.maskrcnn.report.report_page import render_page

pytestmark = pytest.mark.slow

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PHONE, _DESKTOP = (390, 844), (1280, 900)
# Set, screenshots are put into this folder, to be looked at.
_SCREENSHOTS = os.environ.get("MASKRCNN_SCREENSHOTS")


class Browser:
    """Chromium without a window, spoken to over two pipes in the DevTools protocol."""

    def __init__(self, program: str, profile: Path) -> None:
        # The child wants them as 3 and 4, so they must not be there in the parent.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for pair in (os.pipe(), os.pipe()) for end in pair]
        read_there, self._write, self._read, write_there = ends

        def place_pipes() -> None:
            os.dup2(read_there, 3)
            os.dup2(write_there, 4)

        self._process = subprocess.Popen(
            [
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-dev-shm-usage",
                f"--user-data-dir={profile}",
                "--remote-debugging-pipe",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(3, 4),
            preexec_fn=place_pipes,
        )
        os.close(read_there)
        os.close(write_there)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self, seconds: float = 60.0) -> dict:
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer.")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError("Chromium ended.")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def open(self, path: Path, size: tuple[int, int], scheme: str) -> None:
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=1,
            mobile=size[0] < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def run(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', inline: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int, text: str = "") -> None:
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def screenshot(self, name: str) -> None:
        if _SCREENSHOTS:
            data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
            Path(_SCREENSHOTS, name).write_bytes(base64.b64decode(data))

    def close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"no browser found; the pages are looked at with one of {', '.join(_NAMES)}")
    one = Browser(program, tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    first = make_sample("u/<script>alert(1)</script>/a", 6, 0.9)
    second = make_sample("u/someone/a_rather_long_name_of_a_collection_without_any_space", 6, 0.8, seed=2)
    context = ReportContext(
        f"Evaluation of {first.run.name}",
        "/repo",
        first.run.name,
        [("Name", "lite"), ("Collection", "models/" + "x" * 80)],
        {"Training": "steps: 1"},
        {"Configuration of maskRcnnDeblend": "config.a = 1\n" * 3},
        ["u/a", "u/b"],
        {"numpy": "2.0"},
        ["Something is missing."],
    )
    comparison = compare_runs([first.run, second.run], n_samples=50)
    text = render_page(
        evaluation_page(
            first.run,
            first.curves,
            first.gallery,
            others=[second.run],
            comparison=comparison,
            context=context,
        )
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [_PHONE, _DESKTOP])
def test_page_opens(browser: Browser, page: Path, size: tuple[int, int], scheme: str) -> None:
    """No error, no request, no scrolling to the side, and text that can be read."""
    browser.open(page, size, scheme)
    browser.screenshot(f"report_{scheme}_{size[0]}.png")
    assert browser.run("innerWidth") == size[0]
    assert browser.run("document.documentElement.scrollWidth") <= size[0]
    assert browser.run("document.title").endswith("<script>alert(1)</script>/a")
    wide = browser.run(
        "[...document.querySelectorAll('main *')].filter(e => e.getBoundingClientRect().right > innerWidth "
        "+ 1"
        " && !e.closest('.scroll, pre, .sheet, svg, .skip')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    # Contrast of text, as WCAG has it.
    worst = browser.run(
        """(() => {
          const numbers = c => c.match(/[\\d.]+/g).map(Number);
          const level = c => { const [r, g, b] = numbers(c).slice(0, 3).map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
          const ground = e => {
            for (; e; e = e.parentElement) {
              const c = getComputedStyle(e).backgroundColor, n = numbers(c);
              if (n.length === 3 || n[3] === 1) return c;
            }
            return 'rgb(255, 255, 255)';
          };
          let worst = [99, ''];
          const texts = 'p, td, th, dt, dd, a, li, caption, h1, h2, figcaption, span, summary, pre, label';
          for (const e of document.querySelectorAll(texts)) {
            if (!e.textContent.trim() || e.offsetParent === null) continue;
            if (e.closest('.picture, .matrix td')) continue;
            const [a, b] = [level(getComputedStyle(e).color), level(ground(e))].sort((x, y) => y - x);
            const ratio = (a + 0.05) / (b + 0.05);
            if (ratio < worst[0]) worst = [ratio, e.outerHTML.slice(0, 100)];
          }
          return worst; })()"""
    )
    assert worst[0] >= 4.5, worst
    dark = browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert dark == (scheme == "dark")
    # The browser must have had time to report on everything.
    browser.run("1")
    methods = [(event.get("method"), event.get("params", {})) for event in browser.events]
    assert [p for m, p in methods if m in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled")] == []
    assert [
        p for m, p in methods if m == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning")
    ] == []
    asked = [p["request"]["url"] for m, p in methods if m == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:") and url != page.as_uri()] == []


def test_names(browser: Browser, page: Path) -> None:
    """What is not text has a description; addresses are not used twice."""
    browser.open(page, _DESKTOP, "light")
    assert browser.run("[...document.images].filter(e => !e.hasAttribute('alt')).length") == 0
    assert browser.run("document.querySelectorAll('svg.plot').length") > 10
    assert (
        browser.run(
            "[...document.querySelectorAll('svg.plot')].filter(e => !e.ariaLabel || e.role !== 'img').length"
        )
        == 0
    )
    assert (
        browser.run(
            "[...document.querySelectorAll('button')].filter(e => !(e.textContent.trim() || "
            "e.ariaLabel)).length"
        )
        == 0
    )
    repeated = browser.run(
        "(() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id);"
        " return ids.filter((id, i) => ids.indexOf(id) !== i); })()"
    )
    assert repeated == []
    assert browser.run("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")


_COLUMN = (
    "[...document.querySelectorAll('#precision table')[0].tBodies[0].rows].map(r => r.cells[2].dataset.value)"
)
_HEAD = "#precision table th:nth-child(3) button"


def test_tables_sort(browser: Browser, page: Path) -> None:
    browser.open(page, _PHONE, "light")
    given = browser.run(_COLUMN)
    browser.click(_HEAD)
    assert browser.run(_COLUMN) == sorted(given, key=float)
    assert browser.run(f"document.querySelector('{_HEAD}').parentElement.ariaSort") == "ascending"
    # Once more, by keyboard.
    browser.run(f"document.querySelector('{_HEAD}').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.run(_COLUMN) == sorted(given, key=float, reverse=True)
    assert browser.run(f"document.querySelector('{_HEAD}').parentElement.ariaSort") == "descending"
    # What has no number stays at the end either way.
    table = "[...document.querySelectorAll('#comparison table tbody tr')].map(r => r.cells[6].dataset.value)"
    for _ in range(2):
        browser.click("#comparison table th:nth-child(7) button")
        cells = browser.run(table)
        known = [cell for cell in cells if cell]
        assert cells[: len(known)] == known and len(known) > 20
    browser.click("#comparison table th:nth-child(1) button")
    words = browser.run(
        "[...document.querySelectorAll('#comparison table tbody tr')].map(r => r.cells[0].innerText)"
    )
    assert words == sorted(words, key=str.lower) and len(set(words)) > 5


_VIEWS = "[...document.querySelectorAll('#gallery .picture')].map(e => e.dataset.view)"


def _visible(browser: Browser, index: int) -> set[str]:
    return set(
        browser.run(
            f"[...document.querySelectorAll('#gallery .picture')[{index}].children]"
            ".filter(e => getComputedStyle(e).visibility === 'visible').map(e => "
            "e.classList[e.classList.length - 1])"
        )
    )


def test_gallery(browser: Browser, page: Path) -> None:
    browser.open(page, _PHONE, "dark")
    number = browser.run("document.querySelectorAll('#gallery .picture').length")
    assert number == 4
    assert browser.run(_VIEWS) == ["both"] * number
    assert _visible(browser, 0) == {"base", "truth", "found", "view"}
    browser.click("#gallery .layers input[value=truth]")
    assert browser.run(_VIEWS) == ["truth"] * number
    assert _visible(browser, 0) == {"base", "truth", "view"}
    # The choices are one group: arrows go from one to the next.
    browser.press("ArrowRight", 39)
    assert browser.run(_VIEWS) == ["found"] * number
    assert _visible(browser, 0) == {"base", "found", "view"}
    browser.click("#gallery .layers input[value=residual]")
    has = browser.run(
        "[...document.querySelectorAll('#gallery .picture')].map(e => e.dataset.residual === 'true')"
    )
    assert browser.run(_VIEWS) == ["residual" if one else "image" for one in has]
    assert sorted(set(has)) == [False, True]
    assert _visible(browser, has.index(True)) == {"base", "residual", "view"}
    # A picture of its own: by mouse, then by keyboard.
    browser.click("#gallery .layers input[value=image]")
    browser.click("#gallery .tiles li:first-child .picture")
    assert browser.run(_VIEWS)[0] == "truth"
    browser.run("document.querySelector('#gallery .picture').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.run(_VIEWS)[0] == "found"
    browser.press(" ", 32, " ")
    assert browser.run(_VIEWS)[0] == "both"
    assert browser.run(_VIEWS)[1] == "image"
    # The pixels of a picture are on the screen, and so are the outlines.
    assert browser.run("[...document.images].every(e => e.complete && e.naturalWidth > 30)")
    box = browser.run(
        "(() => { const b = document.querySelector('#gallery .picture .truth').getBoundingClientRect();"
        " return [b.width, b.height]; })()"
    )
    assert box[0] == pytest.approx(box[1]) and box[0] > 100


def test_colours_can_be_chosen(browser: Browser, page: Path) -> None:
    browser.open(page, _DESKTOP, "dark")
    ink = "getComputedStyle(document.querySelector('svg.plot text')).fill"
    dark = browser.run(ink)
    browser.run(
        "(() => { const s = document.getElementById('theme'); s.value = 'light';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(251, 251, 249)"
    assert browser.run(ink) != dark
