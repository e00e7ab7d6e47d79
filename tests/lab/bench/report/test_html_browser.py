"""The HTML report in a real browser, without a server: it opens, fits, sorts, and asks for nothing."""

import json
import os

import pytest
from PIL import Image

from toys import natural
from toys_web import NARROW, WIDE

pytest.importorskip("torch")
pytest.importorskip("skimage")
pytest.importorskip("matplotlib")
pytest.importorskip("pytorch_lightning")

from unrain.devices import Processor
from unrain.lab.bench.candidates import find
from unrain.lab.bench.cost import Cost
from unrain.lab.bench.report.html import write_page
from unrain.lab.bench.run import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for side, lighter in (("rain", 30), ("clean", 0)):
        (folder / "data" / "rain12" / side).mkdir(parents=True)
        for i in range(12):
            picture = natural(60, 90, seed=i) // 2 + lighter
            Image.fromarray(picture).save(folder / "data" / "rain12" / side / f"{i}.png")
    candidate = find(str(model_folder / "tiny.onnx"))
    measured = list(
        run(
            [candidate],
            [(folder / "data", "rain12", False)],
            recursions=(1, 2),
            inputs=True,
            processor=Processor("cpu", threads=1),
        )
    )
    costs = {
        (candidate, recursions): Cost(1049, 900.0 * recursions, 81.5, "481x321") for recursions in (1, 2)
    }
    write_page(folder / "report.html", measured, costs, published=True)
    return folder / "report.html"


@pytest.fixture
def visit(browser, report):
    asked, complaints, contexts = [], [], []

    def opened(**options):
        context = browser.new_context(**{"viewport": WIDE, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text))
        page.goto(report.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert all(url == report.as_uri() or url.startswith("data:") for url in asked), asked
    assert complaints == []


def test_a_click_on_a_head_sorts(visit):
    page = visit()
    heads = page.locator("th")
    column = heads.all_inner_texts().index("PSNR, dB")
    shown = f"[...document.querySelectorAll('tbody tr')].map(row => row.cells[{column}].dataset.value)"
    for order in (True, False):
        page.get_by_role("button", name="PSNR, dB").click()
        values = [float(value) for value in page.evaluate(shown)]
        assert values == sorted(values, reverse=order)
    assert heads.nth(column).get_attribute("aria-sort") == "ascending"
    # What has no value stays below, whichever way.
    weights = heads.all_inner_texts().index("weights")
    for _ in range(2):
        page.get_by_role("button", name="weights").click()
        found = page.evaluate(shown.replace(f"cells[{column}]", f"cells[{weights}]"))
        assert [value is None for value in found] == sorted(value is None for value in found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_fits_the_screen_in_light_and_dark(visit, scheme, viewport):
    page = visit(viewport=viewport, color_scheme=scheme)
    # All pictures are there, even those below the screen.
    page.evaluate("[...document.images].forEach(image => image.loading = 'eager')")
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth)")
    assert page.evaluate("document.images.length") == 2 * 3 * 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colours = page.evaluate(
        "[document.body, document.querySelector('svg text')].map(e => getComputedStyle(e))"
        ".map((style, i) => i ? style.fill : style.backgroundColor)"
    )
    ground, ink = (sum(json.loads(colour.replace("rgb(", "[").replace(")", "]"))) for colour in colours)
    assert (ground > 600 and ink < 200) if scheme == "light" else (ground < 150 and ink > 600)
    # To be looked at: UNRAIN_SCREENSHOTS=folder.
    if folder := os.environ.get("UNRAIN_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/report-{scheme}-{viewport['width']}.png", full_page=True)
