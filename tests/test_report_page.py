"""The report in headless Chromium: all is drawn, nothing asked of the network, curves and videos move each other."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from report_run import gate, make_run, outcomes, record_ways

from recap.report import write_html, write_summary
from recap.report.__main__ import main
from recap.report.html.theme import LEFT, RIGHT

PHONE, DESKTOP = 375, 1280
BEFORE, AFTER = outcomes("1100000010"), outcomes("1011111100")
FRAME = 0.1  # seconds, of the recorded rollouts
POLICY = {"light": "rgb(31, 111, 139)", "dark": "rgb(99, 180, 209)"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium on PATH to open the report with (apt-get install chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every section: two iterations, ablations, a gate that failed, and a policy that got worse."""
    ablations = {"labels_on_demonstrations": AFTER, "negative_prompt": BEFORE}
    run = make_run(tmp_path_factory.mktemp("outputs") / "demo", [BEFORE, AFTER, BEFORE], ablations)
    record_ways(run)
    gate(run / "iter_02" / "gate", ["rank"], "warn")
    return write_html(run, write_summary(run))


class Opened:
    """A page with what it complained of and what it asked for."""

    def __init__(self, browser: Browser, path: Path, width: int, scheme: Any = "light") -> None:
        phone = width == PHONE
        size: Any = {"width": width, "height": 900}
        context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=phone, is_mobile=phone)
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn]")
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('video')].every((film) => film.readyState >= 2)"
        )

    def elsewhere(self) -> list[str]:
        return [url for url in self.asked[1:] if not url.startswith(("data:", "blob:"))]


# What plotly drew into each slot, as the browser has it: names with no visible mark of some trace.
EMPTY = """() => [...document.querySelectorAll("[data-figure]")].filter((box) => {
    const marks = box.querySelectorAll(".scatterlayer .trace path, .barlayer .point path");
    const traces = box.querySelectorAll(".scatterlayer .trace, .barlayer .trace");
    const seen = [...marks].some((mark) => mark.getBBox().width > 0);
    return !box.data.length || traces.length < box.data.length || !seen;
}).map((box) => box.dataset.figure)"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")])
def test_everything_is_drawn(browser: Browser, report: Path, width: int, scheme: str) -> None:
    opened = Opened(browser, report, width, scheme)
    page = opened.page
    assert opened.complaints == []
    assert opened.elsewhere() == []
    assert page.locator("[data-figure]").count() >= 2 + 4 + 2 + 1 + 2  # success, choices, traces, advantages, losses
    assert page.evaluate(EMPTY) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing to scroll sideways
    wider = page.evaluate(
        "() => [...document.querySelectorAll('.figure')].filter((box) => "
        "box.querySelector('.main-svg').getBoundingClientRect().right > innerWidth).length"
    )
    assert wider == 0
    wait_for_colour(page, scheme)
    other: Any = "dark" if scheme == "light" else "light"
    page.emulate_media(color_scheme=other)  # the device changes to night or day
    wait_for_colour(page, other)
    page.select_option("select", index=0)
    page.wait_for_timeout(300)
    assert page.evaluate(EMPTY) == []
    page.evaluate("() => Plotly.react(document.querySelector('[data-figure=ablations]'), [])")
    assert page.evaluate(EMPTY) == ["ablations"]  # an empty one would be seen
    assert opened.complaints == []


def wait_for_colour(page: Page, scheme: str) -> None:
    """Until the success curve has the colour of a scheme; an error after ten seconds."""
    colour = "getComputedStyle(document.querySelector('[data-figure=success] .js-line')).stroke"
    page.wait_for_function(f"() => {colour} === '{POLICY[scheme]}'", timeout=10_000)


@pytest.mark.slow
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_curve_and_video_move_each_other(browser: Browser, report: Path, width: int) -> None:
    opened = Opened(browser, report, width)
    page, panel = opened.page, opened.page.locator("[data-trace]").first
    scrub, film = panel.locator(".scrub"), panel.locator("video")
    last = int(scrub.get_attribute("aria-valuemax") or 0)

    def state() -> tuple[int, float, bool]:
        shown = int(scrub.get_attribute("aria-valuenow") or -1)
        return shown, film.evaluate("film => film.currentTime"), film.evaluate("film => film.paused")

    def cursor() -> float:
        return panel.locator(".cursor").bounding_box()["x"]  # type: ignore[index]

    # The curve moves the video, forwards and back.
    scrub.scroll_into_view_if_needed()
    box = scrub.bounding_box()
    assert box
    wide, places = box["width"] - LEFT - RIGHT, []
    for share in (0.8, 0.3):
        x, y = box["x"] + LEFT + share * wide, box["y"] + box["height"] / 3
        page.touchscreen.tap(x, y) if width == PHONE else page.mouse.click(x, y)
        page.wait_for_function("film => !film.seeking", arg=film.element_handle())
        frame, time, paused = state()
        assert paused
        assert frame == pytest.approx(share * (last + 1), abs=1)
        assert time == pytest.approx((frame + 0.5) * FRAME, abs=0.01)
        assert cursor() == pytest.approx(x, abs=wide / last)  # within the frame that was pointed at
        places.append(cursor())
    assert places[0] > places[1]

    # Keys step by a frame.
    before = state()[0]
    scrub.press("ArrowRight")
    assert state()[0] == before + 1

    # The video moves the cursor.
    start, place = state()[0], cursor()
    panel.locator(".play").click()
    page.wait_for_function(
        f"scrub => Number(scrub.getAttribute('aria-valuenow')) > {start + 3}", arg=scrub.element_handle()
    )
    assert cursor() > place
    assert not state()[2]
    panel.locator(".play").click()
    frame, time, paused = state()
    assert paused
    assert frame == pytest.approx(time / FRAME, abs=1.5)
    assert opened.complaints == []


@pytest.mark.slow
def test_a_run_of_the_loop(browser: Browser, finished_run: Path) -> None:
    """The page of a real run, as the loop left it, and of two beside each other."""
    run = finished_run / "outputs" / "demo_small"
    opened = Opened(browser, run / "report.html", PHONE)
    assert opened.page.evaluate(EMPTY) == []
    assert opened.page.locator("[data-trace] video").count() > 0
    assert (opened.complaints, opened.elsewhere()) == ([], [])
    assert main([str(run), str(run), "--page", str(finished_run / "comparison.html")]) == 0
    compared = Opened(browser, finished_run / "comparison.html", DESKTOP)
    assert compared.page.evaluate(EMPTY) == []
    assert (compared.complaints, compared.elsewhere()) == ([], [])
