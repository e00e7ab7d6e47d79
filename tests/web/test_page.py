"""The page in a real browser: Chromium without a window, driven by Playwright, on loopback alone."""

import io
import itertools
import os
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from toys import natural
from toys_web import NARROW, WIDE, Doorkeeper, expected, picture, running
from unrain import image

pytestmark = pytest.mark.slow

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")


@pytest.fixture(scope="module")
def port(model_folder):
    with running(model_folder) as (port, _):
        yield port


@pytest.fixture
def visit(browser, port):
    """Opens the page; afterwards checks that it spoke to its own server alone and complained of nothing."""
    asked, complaints, contexts = [], [], []

    def opened(port=port, **options):
        context = browser.new_context(**{"viewport": WIDE, "accept_downloads": True, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#model option", state="attached")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert all(url.startswith(("http://127.0.0.1:", "blob:http://127.0.0.1:")) for url in asked), asked
    # Chromium reports each refusal of the server as an error of its own.
    assert [line for line in complaints if "status of 4" not in line] == []


def upload(page, *files):
    named = [{"name": name, "mimeType": kind, "buffer": data} for name, kind, data in files]
    page.set_input_files("#files", named)


def entry(page, name):
    return page.locator(".entry", has_text=name)


def done(page, name):
    return page.locator(".entry[data-state=done]", has_text=name).wait_for()


def test_upload_slider_views_and_download(visit, model_folder):
    page = visit()
    data = picture("PNG", 120, 200)
    upload(page, ("street.png", "image/png", data))
    done(page, "street.png")
    slider = page.locator("img-comparison-slider")
    slider.wait_for()
    assert slider.get_attribute("aria-valuenow") == "50"
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, middle, steps=4)
    page.mouse.up()
    assert abs(int(slider.get_attribute("aria-valuenow")) - 20) <= 1
    # What is left of the handle is the picture as it was, once the slider has got there.
    page.wait_for_function(
        "() => /^inset\\(0px (79|80)/.test(getComputedStyle(document.querySelector('img-comparison-slider')"
        ".shadowRoot.querySelector('.first-overlay-container')).clipPath)"
    )
    images = page.locator("img-comparison-slider img")
    sizes = images.evaluate_all("images => images.map(i => [i.naturalWidth, i.naturalHeight])")
    assert sizes == [[200, 120], [200, 120]]

    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "street_derained.png"
    derained, result, _ = expected(model_folder, data, "PNG")
    assert read(download) == derained

    page.get_by_label("Rain layer").check()
    page.locator("#stage canvas").wait_for()
    assert_layer(page, result.rain_layer)
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "street_rain.png"
    with Image.open(io.BytesIO(read(download))) as layer:
        assert np.array_equal(np.asarray(layer), result.rain_layer)


def canvas(page):
    """What is drawn over the image on the stage."""
    width, height, values = page.evaluate(
        """() => {
            const canvas = document.querySelector("#stage canvas");
            const { width, height } = canvas;
            return [width, height, [...canvas.getContext("2d").getImageData(0, 0, width, height).data]];
        }"""
    )
    return np.array(values).reshape(height, width, 4)[..., :3]


def assert_layer(page, layer):
    """What is drawn is the layer, brightened so that it is seen and hardly any of it is white."""
    gain = int(page.locator("#stage canvas").get_attribute("data-gain"))
    assert np.abs(canvas(page) - np.minimum(layer.astype(int) * gain, 255)).max() <= gain
    bright = np.quantile(layer, 0.995)
    assert gain == 16 or bright * gain <= 255 < (bright + 1) * (gain + 1)
    shown = f"Rain layer, {gain} × as bright" if gain > 1 else "Rain layer"
    assert page.locator("#stage .badge").inner_text() == shown


def test_the_strength_slider_needs_no_second_run(visit, model_folder):
    with running(model_folder) as (port, queue):
        page = visit(port)
        pixels = (natural(120, 200).astype(np.uint16) * 257) ^ 3
        alpha = np.full((120, 200), 40_000, np.uint16)
        data, _ = image.encode(image.Picture(pixels, alpha), "PNG")
        upload(page, ("deep.png", "image/png", data), ("other.png", "image/png", picture()))
        done(page, "deep.png")
        done(page, "other.png")
        # Whatever the network is asked for from here on fails.
        queue.runner.engines["tiny"] = None
        page.get_by_label("Compare").check()
        sync_api.expect(page.locator("#stage .mixed img")).to_be_visible()
        assert not page.locator("#stage canvas").is_visible()
        slider = page.get_by_role("slider", name="Strength")
        slider.focus()
        for _ in range(8):
            page.keyboard.press("ArrowLeft")
        sync_api.expect(slider).to_have_attribute("aria-valuetext", "60 %")
        sync_api.expect(page.locator("#strength-shown")).to_have_text("60 %")
        right, result, source = expected(model_folder, data, "PNG", 0.6)
        page.locator("#stage canvas").wait_for()
        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename == "deep_derained.png"
        assert read(download) == right
        page.get_by_label("Rain layer").check()
        with page.expect_download() as download:
            page.click("#download")
        layer = image.decode(read(download), "layer").pixels
        np.testing.assert_array_equal(layer, np.maximum(source.pixels.astype(int) - result.at(0.6), 0))
        with page.expect_download() as download:
            page.click("#all")
        with zipfile.ZipFile(io.BytesIO(read(download))) as archive:
            assert archive.read("deep_derained.png") == right
            assert archive.read("other_derained.png") == expected(model_folder, picture(), "PNG")[0]
        # Each picture has a strength of its own.
        entry(page, "other.png").locator(".open").click()
        sync_api.expect(slider).to_have_value("100")
        entry(page, "deep.png").locator(".open").click()
        sync_api.expect(slider).to_have_value("60")


@pytest.mark.parametrize("percent", [0, 35, 150])
def test_what_is_shown_at_a_strength_is_what_the_server_makes(visit, model_folder, percent):
    page = visit()
    data = picture("PNG", 60, 80)
    upload(page, ("a.png", "image/png", data))
    done(page, "a.png")
    page.locator("#strength").fill(str(percent))
    page.locator("#stage canvas").wait_for()
    _, result, _ = expected(model_folder, data, "PNG")
    strong = result.at(percent / 100)
    assert np.abs(canvas(page) - strong).max() <= 1
    page.get_by_label("Rain layer").check()
    page.locator("#stage canvas").wait_for()
    assert_layer(page, np.maximum(result.rainy.astype(int) - strong, 0))
    page.get_by_label("Result").check()
    page.get_by_label("Actual size").check()
    page.locator("#stage canvas").wait_for()
    assert np.abs(canvas(page) - strong).max() <= 1
    page.locator("#strength").fill("100")
    page.locator("#stage canvas").wait_for(state="hidden")


def test_a_refusal_of_a_strength_is_shown(visit):
    page = visit()
    upload(page, ("a.png", "image/png", picture()))
    done(page, "a.png")
    page.locator("#strength").fill("50")
    page.route("**/api/strength", lambda route: route.fulfill(status=413, json={"detail": "too large"}))
    page.click("#download")
    sync_api.expect(page.locator("#problem")).to_have_text("too large")
    sync_api.expect(page.locator("#download")).to_have_text("Download")
    page.unroute("**/api/strength")
    # A busy server is asked once more.
    busy = {"status": 429, "headers": {"Retry-After": "1"}, "json": {"detail": "busy"}}
    page.route("**/api/strength", lambda route: route.fulfill(**busy), times=1)
    with page.expect_download():
        page.click("#download")
    assert not page.locator("#problem").is_visible()


def test_hardly_any_rain_is_said(visit, model_folder):
    engine = Doorkeeper()
    engine.recursive = True
    engine.gate.release(9)
    with running(model_folder, engine) as (port, _):
        page = visit(port)
        upload(page, ("clean.png", "image/png", picture()))
        done(page, "clean.png")
        assert "hardly any rain found" in entry(page, "clean.png").locator(".status").inner_text()
        sync_api.expect(page.locator("#facts")).to_contain_text("Hardly any rain found. tiny, ")
        assert page.locator("#live").inner_text() == "clean.png: done, hardly any rain found, 1 of 1"


def read(download):
    with open(download.value.path(), "rb") as file:  # noqa: PTH123  (Playwright gives text)
        return file.read()


def test_several_pictures_one_of_them_corrupt(visit, model_folder):
    page = visit()
    good = [(f"{n}.jpg", "image/jpeg", picture("JPEG", 60, 80, seed=n)) for n in range(2)]
    twin = ("0.jpg", "image/jpeg", good[0][2])
    upload(page, *good, ("broken.png", "image/png", picture()[:150]), ("note.txt", "text/plain", b"hi"), twin)
    sync_api.expect(page.locator(".entry[data-state=done]")).to_have_count(3)
    sync_api.expect(page.locator(".entry[data-state=failed]")).to_have_count(2)
    assert "damaged" in entry(page, "broken.png").locator(".status").inner_text()
    assert "no picture in JPEG, PNG" in entry(page, "note.txt").locator(".status").inner_text()
    assert page.locator("#count").inner_text() == "3 of 5 done, 2 failed"
    # The same file would fail again.
    assert page.locator(".redo:visible").count() == 0
    with page.expect_download() as download:
        page.click("#all")
    assert download.value.suggested_filename == "unrain.zip"
    with zipfile.ZipFile(io.BytesIO(read(download))) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["0_derained (2).jpg", "0_derained.jpg", "1_derained.jpg"]
        assert archive.read("1_derained.jpg") == expected(model_folder, good[1][2], "JPEG")[0]
    entry(page, "broken.png").get_by_label("Remove broken.png").click()
    assert page.locator(".entry").count() == 4


def test_a_format_that_browsers_cannot_show(visit, model_folder):
    page = visit()
    data = picture("TIFF", 60, 80)
    upload(page, ("scan.tif", "image/tiff", data))
    done(page, "scan.tif")
    page.locator(".frame.fitted").wait_for()
    width = "document.querySelector('img-comparison-slider [slot=first]').naturalWidth"
    assert page.evaluate(width) == 80
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "scan_derained.tif"
    assert read(download) == expected(model_folder, data, "TIFF")[0]


def test_other_settings_and_again(visit, model_folder):
    page = visit()
    data = picture("PNG", 60, 80)
    upload(page, ("a.png", "image/png", data))
    done(page, "a.png")
    assert not page.locator("#again").is_visible()
    page.select_option("#recursions", "3")
    page.click("#again")
    sync_api.expect(page.locator("#facts")).to_contain_text("3 recursions")
    assert not page.locator("#again").is_visible()
    with page.expect_download() as download:
        page.click("#download")
    assert read(download) == expected(model_folder, data, "PNG", recursions=3)[0]


def test_by_keyboard_alone(visit):
    page = visit()
    upload(page, ("a.png", "image/png", picture(seed=1)), ("b.png", "image/png", picture(seed=2)))
    done(page, "a.png")
    done(page, "b.png")
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(30):
        page.keyboard.press("Tab")
        tag, name = page.evaluate("(e => [e.tagName, e.id || e.className || ''])(document.activeElement)")
        reached.add(name)
        if tag == "IMG-COMPARISON-SLIDER" and "slid" not in reached:
            reached.add("slid")
            page.keyboard.press("End")
            assert page.evaluate("document.activeElement.getAttribute('aria-valuenow')") == "100"
            page.keyboard.down("ArrowLeft")
            slider = page.locator("img-comparison-slider")
            sync_api.expect(slider).to_have_attribute("aria-valuenow", re.compile(r"[1-8]?\d"))
            page.keyboard.up("ArrowLeft")
        elif name == "open":
            page.keyboard.press("Enter")
    names = {"files", "model", "recursions", "strength", "download", "all", "open", "quiet remove", "slid"}
    assert names <= reached
    assert page.locator("#title").inner_text() == "b.png"


def test_labels_and_live_region(visit):
    page = visit()
    upload(page, ("a.png", "image/png", picture()))
    done(page, "a.png")
    assert page.locator("#live").inner_text() == "a.png: done, 1 of 1"
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, a, select, input, progress, [role=slider]')].filter(e =>
            !e.textContent.trim() && !e.getAttribute('aria-label') && !(e.labels && e.labels.length)
        ).map(e => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.evaluate("[...document.images].every(i => i.hasAttribute('alt'))")
    tree = page.locator("main").aria_snapshot()
    assert 'slider "Part of the picture that is shown as it was before"' in tree
    assert 'radio "Compare" [checked]' in tree
    assert 'slider "Strength"' in tree and 'button "Download a.png"' in tree
    assert 'img "a.png after, without its rain"' in tree
    page.get_by_label("Rain layer").check()
    page.locator("#stage canvas").wait_for()
    assert 'img "What was removed from a.png"' in page.locator("main").aria_snapshot()


def test_drop_and_paste(visit):
    page = visit()
    for event, name in (("drop", "dropped.png"), ("paste", "pasted.png")):
        page.evaluate(
            """([event, name, bytes]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
                const options = { bubbles: true, cancelable: true };
                document.body.dispatchEvent(event === "drop"
                    ? new DragEvent("drop", { ...options, dataTransfer: transfer })
                    : new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
            }""",
            [event, name, list(picture())],
        )
        done(page, name)


def test_progress_and_a_full_queue(visit, model_folder):
    engine = Doorkeeper()
    # As the model that the page was told of.
    engine.recursive = True
    with running(model_folder, engine, queue=0) as (port, _):
        page = visit(port)
        upload(page, ("a.png", "image/png", picture(seed=1)), ("b.png", "image/png", picture(seed=2)))
        page.locator(".entry", has_text="The server is busy").wait_for()
        # The first of them: on a slow machine the other one's next try is under way as well.
        page.locator(".entry[data-state=working]", has_text="Removing the rain").first.wait_for()
        assert page.locator("#count").inner_text() == "0 of 2 done"
        engine.gate.release(9)
        done(page, "a.png")
        done(page, "b.png")


def test_it_fits_the_screen_in_light_and_dark(visit):
    page = visit()
    jpeg = io.BytesIO()
    Image.fromarray(natural(300, 480)).save(jpeg, "JPEG")
    upload(
        page,
        ("a rather long name of a photograph from the holidays.jpg", "image/jpeg", jpeg.getvalue()),
        ("broken.png", "image/png", picture()[:150]),
    )
    done(page, "holidays")
    page.locator(".frame.fitted").wait_for()
    page.locator(".entry[data-state=failed]").wait_for()
    fits(page, "page")


def test_the_page_leads_to_the_openapi_document(visit):
    page = visit()
    page.click("footer a[href='openapi.json']")
    page.wait_for_url("**/openapi.json")


def fits(page, name):
    for scheme, viewport in itertools.product(("light", "dark"), (WIDE, NARROW)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size(viewport)
        assert page.evaluate("[innerWidth, document.documentElement.scrollWidth]") == [viewport["width"]] * 2
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red, green, blue = (int(number) for number in re.findall(r"\d+", background))
        assert (red + green + blue > 600) == (scheme == "light")
        # To be looked at: UNRAIN_SCREENSHOTS=folder.
        if folder := os.environ.get("UNRAIN_SCREENSHOTS"):
            page.screenshot(path=f"{folder}/{name}-{scheme}-{viewport['width']}.png", full_page=True)
