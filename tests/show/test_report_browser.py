"""The report in a real browser, without a network (run with -m browser)."""

import re
import shutil

import pytest
from comparisons import everything, frames, score

from hope_eval.show import report

pytestmark = pytest.mark.browser

_DESKTOP = {"width": 1280, "height": 900}
_PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write(path, report.Content(**everything()))
    return path


@pytest.fixture
def opened(browser, path):
    """Return a function that opens a report; whatever goes wrong in the page fails the test."""
    contexts, trouble = [], []

    def open_page(viewport=_DESKTOP, file=path, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        context.set_offline(True)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("requestfailed", lambda request: trouble.append(f"failed: {request.url[:80]}"))
        page.on("request", lambda one: one.url.startswith(("file:", "data:")) or trouble.append(f"asked: {one.url}"))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]", timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not trouble


def lines_drawn(page, chart):
    """Return how many lines a chart has."""
    return page.locator(f"[data-chart={chart}] .mark-line path").count()


def box_of(page, line):
    """Return the checkbox of a line."""
    return page.locator("#lines").get_by_label(line, exact=True)


def test_every_chart_is_drawn_and_described(opened):
    page = opened()
    charts = page.locator("[data-chart]")
    assert charts.count() == 8
    for number in range(charts.count()):
        assert charts.nth(number).locator("svg").count() == 1
        assert charts.nth(number).get_attribute("aria-label")
    assert lines_drawn(page, "chart-1") == 3


def test_the_training_length_is_marked_and_ticks_are_lengths(opened):
    page = opened()
    texts = page.locator("[data-chart=chart-1] svg text").all_text_contents()
    assert {"256", "512", "1k", "training length"} <= set(texts)


def test_hovering_tells_the_number_with_its_interval(opened):
    page = opened()
    point = page.locator("[data-chart=chart-2] [class*=points] path").nth(0)
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] - 40, box["y"] + 20)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    page.wait_for_selector("#vg-tooltip-element.visible")
    told = page.locator("#vg-tooltip-element").inner_text()
    assert re.search(r"line\s*(rope|hope|alibi)", told)
    assert re.search(r"95 % interval\s*\[0\.\d+, \d\.\d+\]", told)
    assert "copy@v1" in told


def test_unchecking_a_line_removes_it_from_every_chart_and_checking_brings_it_back(opened):
    page = opened()
    assert [lines_drawn(page, chart) for chart in ("chart-1", "chart-2", "chart-3")] == [3, 3, 2]
    box_of(page, "hope").uncheck()
    page.wait_for_timeout(300)
    assert [lines_drawn(page, chart) for chart in ("chart-1", "chart-2", "chart-3")] == [2, 2, 1]
    page.get_by_role("button", name="None", exact=True).click()
    page.wait_for_timeout(300)
    assert lines_drawn(page, "chart-1") == 0
    page.get_by_role("button", name="All", exact=True).click()
    page.wait_for_timeout(300)
    assert lines_drawn(page, "chart-1") == 3


def test_clicking_the_legend_brings_a_line_to_the_front(opened):
    page = opened()
    page.locator("[data-chart=chart-1] .role-legend-label text", has_text="hope").click()
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    drawn = page.locator("[data-chart=chart-1] .mark-line path").evaluate_all(
        "paths => paths.map((path) => path.getAttribute('opacity'))"
    )
    assert sorted(drawn, key=float) == ["0.15", "0.15", "1"]


def test_lists_of_charts_choose_what_is_shown(opened):
    page = opened()
    chart = page.locator("[data-chart=chart-7]")
    before = chart.locator(".mark-rect path").count()
    chart.get_by_role("combobox", name="length").select_option("256")
    page.wait_for_timeout(300)
    assert chart.locator(".mark-rect path").count() == before == 15


def test_tables_sort_by_all_digits_and_back(opened):
    page = opened()
    table = page.get_by_role("table", name="copy, accuracy")
    first = table.locator("tbody th").first
    assert first.inner_text() == "rope"
    heading = table.locator("thead th", has_text="512")
    heading.click()
    heading.and_(page.locator("[aria-sort=ascending]")).wait_for()
    assert table.locator("tbody th").all_inner_texts() == ["rope", "hope", "alibi"]
    heading.click()
    heading.and_(page.locator("[aria-sort=descending]")).wait_for()
    assert table.locator("tbody th").all_inner_texts() == ["alibi", "hope", "rope"]


def test_tables_sort_by_keyboard(opened):
    page = opened()
    table = page.get_by_role("table", name="copy, accuracy")
    table.locator("thead th", has_text="1k").get_by_role("button").focus()
    page.keyboard.press("Enter")
    table.locator("[aria-sort=ascending]").wait_for()
    assert table.locator("tbody th").all_inner_texts() == ["rope", "alibi", "hope"]


def test_tables_filter_by_several_words(opened):
    page = opened()
    table = page.get_by_role("table", name="Differences")
    rows = table.locator("tbody tr")
    assert rows.count() == 12
    page.locator(f"[data-filters={table.get_attribute('id')}]").fill("hope better copy")
    assert rows.count() == 2
    page.locator(f"[data-filters={table.get_attribute('id')}]").fill("nonsense")
    assert rows.all_inner_texts() == ["No line matches."]


def test_commands_are_copied(opened):
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy command 1").click()
    page.locator("#status", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "hope-eval run --task ppl"


def test_a_phone_scrolls_tables_but_not_the_page(opened):
    page = opened(viewport=_PHONE, is_mobile=True, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for svg in page.locator("[data-chart] svg").all():
        box = svg.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    differences = page.locator(".box", has=page.get_by_role("table", name="Differences"))
    assert differences.evaluate("box => box.scrollWidth > box.clientWidth")


def test_legends_are_whole_on_a_phone(opened):
    page = opened(viewport=_PHONE)
    labels = page.locator("[data-chart=chart-1] .role-legend-label text")
    assert labels.count() == 3
    svg = page.locator("[data-chart=chart-1] svg").bounding_box()
    for label in labels.all():
        box = label.bounding_box()
        assert box["y"] + box["height"] <= svg["y"] + svg["height"]


def test_controls_stay_in_reach_on_a_phone(opened):
    page = opened(viewport=_PHONE)
    page.evaluate("document.getElementById('provenance').scrollIntoView()")
    page.get_by_text("Lines in charts").click()
    box_of(page, "hope").uncheck()
    page.wait_for_timeout(300)
    assert lines_drawn(page, "chart-1") == 2


def test_the_dark_is_dark_and_charts_follow(opened):
    styles = {}
    for scheme in ("light", "dark"):
        page = opened(color_scheme=scheme)
        styles[scheme] = page.evaluate(
            """() => [
                getComputedStyle(document.body).backgroundColor,
                getComputedStyle(document.body).color,
                getComputedStyle(document.querySelector("[data-chart=chart-1] .role-axis-label text")).fill,
                getComputedStyle(document.querySelector("[data-chart=chart-1] .mark-line path")).stroke,
            ]"""
        )
    assert styles["light"][0] == "rgb(255, 255, 255)"
    assert all(light != dark for light, dark in zip(styles["light"][:3], styles["dark"][:3], strict=True))
    assert all(colour.startswith("rgb(") for colours in styles.values() for colour in colours)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [_DESKTOP, _PHONE], ids=["desktop", "phone"])
def test_an_accessibility_checker_finds_nothing(opened, scheme, viewport):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(viewport=viewport, color_scheme=scheme)
    # Closed parts are checked too.
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    found = axe.Axe().run(page).response["violations"]
    assert not [(one["impact"], one["id"], [node["html"][:200] for node in one["nodes"][:3]]) for one in found]


def test_the_keyboard_reaches_all_controls_and_its_place_is_seen(opened):
    page = opened()
    reached, seen = [], []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className + ' ' + document.activeElement.tagName"))
        seen.append(page.evaluate("getComputedStyle(document.activeElement).outlineStyle"))
    assert reached[0] == "skip A"
    assert set(seen) == {"solid"}
    tags = [one.split()[-1] for one in reached]
    assert {"A", "SUMMARY", "INPUT", "BUTTON"} <= set(tags)
    assert any(one.startswith("box") for one in reached)


def test_the_skip_link_leads_past_the_controls(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_motion_is_reduced_where_that_is_asked_for(opened):
    behaviour = "getComputedStyle(document.documentElement).scrollBehavior"
    assert opened(reduced_motion="reduce").evaluate(behaviour) == "auto"
    assert opened(reduced_motion="no-preference").evaluate(behaviour) == "smooth"


def test_without_scripts_all_numbers_are_there(browser, path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    table = page.get_by_role("table", name="copy, accuracy")
    assert table.is_visible()
    assert "0.312" in table.inner_text()
    assert not page.locator("#lines").is_visible()
    assert page.locator("noscript").count() == 1
    context.close()


def test_names_of_users_run_no_scripts(opened, tmp_path):
    evil = "<img src=x onerror=window.hacked=1><script>window.hacked=2</script>"
    scores = [score(name, length, 0.5, encoding="rope") for name in (evil, "rope") for length in (256, 512)]
    file = tmp_path / "evil.html"
    report.write(file, report.Content(**frames(scores), runs=[{"id": evil, "command": evil}], notes=[evil], title=evil))
    page = opened(file=file)
    page.locator("[data-chart=chart-1] [class*=points] path").first.hover(force=True)
    page.wait_for_selector("#vg-tooltip-element.visible")
    page.locator("thead th").first.click()
    assert page.evaluate("window.hacked") is None
    assert evil in page.locator("h1").inner_text()
