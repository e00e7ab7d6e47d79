"""The HTTP API: correct answers, limits, refusals, and clients that are slow or malicious."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import tomllib
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from toys import ROOT, natural

pytest.importorskip("fastapi", reason="needs the extra web")
pytest.importorskip("uvicorn", reason="needs the extra web")
pytest.importorskip("python_multipart", reason="needs the extra web")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from fastapi.testclient import TestClient  # noqa: E402

from toys_web import ONE_THREAD, Doorkeeper, expected, picture, running  # noqa: E402
from unrain import image, zoo  # noqa: E402
from unrain.errors import UnrainError  # noqa: E402
from unrain.score import scorer  # noqa: E402
from unrain.web import server  # noqa: E402
from unrain.web.app import STATIC, create  # noqa: E402
from unrain.web.job import ResultOptions, WebOptions, harmless  # noqa: E402
from unrain.web.queue import Limits  # noqa: E402
from unrain.web.video_job import VideoRequest  # noqa: E402

URL = "http://127.0.0.1:8000"
LAUNCH = (ROOT / "examples" / "launch.jpg").read_bytes()


@pytest.fixture(scope="module")
def app(model_folder):
    return create([zoo.find(model_folder / "tiny.onnx")], processor=ONE_THREAD)


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app, base_url=URL) as client:
        yield client


@contextlib.contextmanager
def limited(model_folder, engine=None, **limits):
    """A client of a server with other limits, and the server's queue."""
    app = create([zoo.find(model_folder / "tiny.onnx")], processor=ONE_THREAD, limits=Limits(**limits))
    queue = app.app.state.queue
    if engine is not None:
        queue.runner.engines["tiny"] = engine
    with TestClient(app, base_url=URL) as client:
        yield client, queue


def send(client, data=None, name="photo.png", **fields):
    return client.post(
        "/api/derain", files={"picture": (name, picture() if data is None else data)}, data=fields
    )


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


# ----------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_picture_in_picture_out_as_the_command_line_does(client, model_folder, kind):
    data = picture(kind)
    answer = send(client, data, f"photo.{kind.lower()}", recursions="2")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == f"image/{kind.lower()}"
    assert answer.headers["unrain-recursions"] == "2"
    assert f'filename="photo_derained.{kind.lower()}"' in answer.headers["content-disposition"]
    assert answer.content == expected(model_folder, data, kind, recursions=2)[0]


def test_alpha_profile_exif_and_sixteen_bits_are_kept(client, model_folder):
    from PIL import ImageCms

    pixels = (natural(24, 32).astype(np.uint16) * 257) ^ 3
    alpha = np.full((24, 32), 40_000, np.uint16)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    known = image.Metadata(icc=profile, exif=exif())
    data, _ = image.encode(image.Picture(pixels, alpha, metadata=known), "PNG")
    answer = send(client, data)
    assert answer.content == expected(model_folder, data, "PNG")[0]
    result = image.decode(answer.content, "result")
    assert result.pixels.dtype == np.uint16
    assert np.array_equal(result.alpha, alpha)
    assert result.metadata.icc == profile
    assert result.metadata.exif == known.exif
    lost = send(client, data, format="jpeg")
    assert lost.headers["content-type"] == "image/jpeg"
    assert any("16 are reduced to 8" in note for note in json.loads(lost.headers["unrain-notes"]))


def exif():
    tags = Image.Exif()
    tags[0x010F] = "maker"
    return tags.tobytes()[6:]


def test_rain_layer_comparison_and_previews_come_in_a_zip(client, model_folder):
    data = picture("TIFF")
    answer = send(client, data, "Ein Bild.tif", rain_layer="true", compare="true", preview="true")
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        # Unpacked by a user of that system, they can be read like other files.
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o644}
        assert archive.namelist() == [
            "Ein Bild_derained.tif",
            "Ein Bild_rain.png",
            "Ein Bild_compare.tif",
            "preview_before.jpg",
            "preview_after.jpg",
        ]
        derained, result, source = expected(model_folder, data, "TIFF")
        assert archive.read("Ein Bild_derained.tif") == derained
        layer = image.decode(archive.read("Ein Bild_rain.png"), "layer").pixels
        assert np.array_equal(layer, result.rain_layer)
        before = image.decode(archive.read("preview_before.jpg"), "before").pixels
        assert np.abs(before.astype(int) - source.pixels).mean() < 4


KINDS = {
    "8 bits": ("PNG", natural(24, 32), None),
    "grey": ("PNG", natural(24, 32)[..., 0], None),
    "16 bits with alpha": (
        "PNG",
        (natural(24, 32).astype(np.uint16) * 257) ^ 3,
        np.full((24, 32), 40_000, np.uint16),
    ),
    "16 bits, grey": ("TIFF", (natural(24, 32)[..., 1].astype(np.uint16) * 257) ^ 3, None),
    "JPEG": ("JPEG", natural(40, 56), None),
}


def strengthened(client, data, difference, name="photo.png", **fields):
    files = {"picture": (name, data), "difference": ("difference.png", difference)}
    return client.post("/api/strength", files=files, data=fields)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0, 0.35, 1, 1.5])
def test_strength_with_and_without_the_network_is_that_of_the_command_line(
    client, model_folder, monkeypatch, kind, strength
):
    format, pixels, alpha = KINDS[kind]
    data, _ = image.encode(image.Picture(pixels, alpha, metadata=image.Metadata(exif=exif())), format)
    right, result, source = expected(model_folder, data, format, strength)
    assert send(client, data, strength=str(strength)).content == right
    with zipfile.ZipFile(io.BytesIO(send(client, data, difference="true").content)) as archive:
        difference = archive.read("difference.png")
    monkeypatch.setattr("unrain.web.job.Derainer", None)
    answer = strengthened(client, data, difference, strength=str(strength))
    assert answer.status_code == 200, answer.text
    assert answer.content == right
    assert answer.headers["unrain-recursions"] == "0"
    both = strengthened(client, data, difference, strength=str(strength), rain_layer="true", compare="true")
    with zipfile.ZipFile(io.BytesIO(both.content)) as archive:
        suffix = archive.namelist()[0].rpartition(".")[2]
        assert archive.namelist()[1:] == ["photo_rain.png", f"photo_compare.{suffix}"]
        layer = image.decode(archive.read("photo_rain.png"), "layer").pixels
    taken = np.maximum(source.pixels.astype(int) - result.at(strength), 0)
    # A layer without colours is read as grey.
    layer = layer[..., None] if layer.ndim < taken.ndim else layer
    np.testing.assert_array_equal(np.broadcast_to(layer, taken.shape), taken)


def test_a_colourless_difference_is_one_of_a_colour_picture_too(client):
    data = picture()
    flat = np.full((40, 56), 3, np.uint8)
    difference, _ = image.encode(image.Picture(flat), "PNG")
    answer = strengthened(client, data, difference)
    wrapped = image.decode(data, "a").pixels - np.uint8(3)
    np.testing.assert_array_equal(image.decode(answer.content, "b").pixels, wrapped)


def test_differences_of_other_pictures_are_refused(client):
    data = picture()
    for difference in (picture(height=41), picture(width=57), grey_of_16_bits()):
        answer = strengthened(client, data, difference)
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("difference: not that of photo.png, send")
    answer = strengthened(client, data, b"noise")
    assert answer.status_code == 422 and answer.json()["detail"].startswith("difference: no picture in")
    assert send(client, data).status_code == 200
    answer = client.post("/api/strength", files={"picture": ("a.png", data)})
    assert (answer.status_code, answer.json()["detail"]) == (
        422,
        "difference: attach a file in a part of this name",
    )
    answer = strengthened(client, data, picture(), recursions="2")
    assert (answer.status_code, answer.json()["detail"]) == (422, "recursions: unknown, leave it out")
    assert strengthened(client, data, bomb()).status_code == 413


def grey_of_16_bits():
    return image.encode(image.Picture(np.zeros((40, 56), np.uint16)), "PNG")[0]


def test_both_files_of_a_strength_count_towards_the_limits(model_folder):
    with limited(model_folder, upload=100_000) as (client, queue):
        answer = strengthened(client, picture(), bytes(100_001))
        assert answer.status_code == 413
        assert answer.json()["detail"].startswith("difference: more than 0.1 MB")
        assert strengthened(client, bytes(100_001), picture()).status_code == 413
        assert strengthened(client, bytes(200_000), bytes(200_000)).status_code == 413
        assert queue.reserved == 0


def test_hardly_any_rain_is_in_a_header(model_folder):
    engine = Doorkeeper()
    engine.gate.release(9)
    with limited(model_folder, engine) as (client, _):
        assert send(client, difference="true").headers["unrain-hardly-any-rain"] == "true"
    with limited(model_folder) as (client, _):
        for strength in ("0", "1"):
            assert send(client, strength=strength).headers["unrain-hardly-any-rain"] == "false"


def test_tiles_quality_and_early_stop(client, model_folder):
    data = picture("JPEG", 96, 120)
    whole = send(client, data)
    tiled = send(client, data, tile="56")
    assert tiled.status_code == 200, tiled.text
    difference = image.decode(whole.content, "a").pixels.astype(int) - image.decode(tiled.content, "b").pixels
    assert np.abs(difference).max() <= 3
    assert len(send(client, data, quality="30").content) < len(whole.content)
    assert send(client, data, recursions="5", until="200").headers["unrain-recursions"] == "1"


def test_models_limits_health_and_openapi(client, app):
    (model,) = client.get("/api/models").json()
    assert model["name"] == "tiny"
    assert model["recursions"] == 2
    assert "path" not in json.dumps(model)
    limits = client.get("/api/limits")
    assert limits.json()["bytes"] == 25_000_000
    assert ".0" not in limits.text
    assert client.get("/healthz").json()["status"] == "ok"
    paths = client.get("/openapi.json").json()["paths"]
    schema = paths["/api/derain"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(schema["properties"]) == {"picture", *WebOptions.model_fields}
    assert schema["required"] == ["picture"]
    assert set(paths) == {
        "/healthz",
        "/readyz",
        "/metrics",
        "/api/models",
        "/api/limits",
        "/api/progress/{ticket}",
        "/api/derain",
        "/api/strength",
        "/api/score",
        "/api/videos",
        "/api/videos/{id}",
        "/api/videos/{id}/frame",
        "/api/videos/{id}/result",
    }
    body = paths["/api/strength"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(body["properties"]) == {"picture", "difference", *ResultOptions.model_fields}
    assert body["required"] == ["picture", "difference"]


def test_the_openapi_document_describes_everything_and_the_page_links_to_it(client):
    document = client.get("/openapi.json").json()
    assert '<a href="openapi.json">' in client.get("/").text
    assert '{"detail": "one line"}' in document["info"]["description"]
    for operations in document["paths"].values():
        for operation in operations.values():
            fields = [
                *operation.get("parameters", []),
                *(
                    field
                    for body in operation.get("requestBody", {}).get("content", {}).values()
                    for field in body["schema"]["properties"].values()
                ),
                *operation["responses"].values(),
                *(
                    header
                    for response in operation["responses"].values()
                    for header in response.get("headers", {}).values()
                ),
            ]
            assert operation["summary"]
            assert all(field["description"] for field in fields)


def test_serve_md_has_all_of_the_openapi_document(client):
    text = (ROOT / "docs" / "serve.md").read_text()
    rows = {
        name for line in text.splitlines() if line.startswith("|") for name in line.split("|")[1].split(",")
    }
    rows = {name.strip(" `") for name in rows}
    paths = client.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path.replace('{ticket}', 'TICKET').replace('{id}', 'ID')}" in rows
            assert {status for status in operation["responses"] if status.isdigit()} - {
                "200",
                "202",
                "204",
            } <= rows
    assert {*WebOptions.model_fields, "picture", *VideoRequest.model_fields, "video"} <= rows


def test_no_page_of_documentation_loads_scripts_from_elsewhere(client):
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404


def test_the_whole_zoo_is_offered_with_the_default_first(monkeypatch):
    # That each of them opens is seen in test_zoo.
    monkeypatch.setattr("unrain.web.runner.open_engine", lambda model, processor: Doorkeeper())
    models = create(processor=ONE_THREAD).app.state.queue.runner.engines
    assert list(models) == [model.name for model in zoo.models()]


def test_no_model_or_two_of_one_name_is_an_error(model_folder, tmp_path):
    with pytest.raises(UnrainError, match="no models"):
        create([])
    model = zoo.find(model_folder / "tiny.onnx")
    with pytest.raises(UnrainError, match="second model called tiny"):
        create([model, model])


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recursions": "0"}, "recursions"),
        ({"recursions": "17"}, "recursions"),
        ({"recursions": "many"}, "recursions"),
        ({"until": "0"}, "until"),
        ({"until": "nan"}, "until"),
        ({"quality": "101"}, "quality"),
        ({"strength": "1.51"}, "strength"),
        ({"strength": "-0.1"}, "strength"),
        ({"strength": "nan"}, "strength"),
        ({"tile": "8"}, "tile is 8"),
        ({"tile": "5000"}, "tile"),
        ({"format": "gif"}, "format"),
        ({"model": "../../etc/passwd"}, "unknown, known ones: tiny"),
        ({"model": "/etc/passwd"}, "unknown, known ones: tiny"),
        ({"url": "http://example.org/a.png"}, "url: unknown"),
        ({"ticket": "../x"}, "ticket"),
    ],
)
def test_options_out_of_range(client, fields, message):
    answer = send(client, **fields)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


def test_a_model_is_never_taken_from_a_path(client, model_folder):
    assert send(client, model=str(model_folder / "tiny.onnx")).status_code == 422
    assert send(client, model="tiny").status_code == 200


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"no picture at all", "no picture in"),
        (picture("PNG")[:200], "damaged"),
        (picture("JPEG")[:300], "damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture in"),
        (
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
            "no picture in",
        ),
    ],
)
def test_files_that_are_no_pictures(client, data, message):
    answer = send(client, data)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]
    assert "photo.png" in answer.json()["detail"]


def test_the_score_is_that_of_the_command_line(client, app):
    answer = client.post("/api/score", files={"picture": ("launch.jpg", LAUNCH)})
    expected = scorer()(image.decode(LAUNCH, "x").pixels).as_dict()
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    found = answer.json()
    assert found["verdict"] == expected["verdict"] == "heavy"
    assert abs(found["score"] - expected["score"]) <= 0.1
    refused = client.post("/api/score", files={"picture": ("a.jpg", LAUNCH)}, data={"strength": "1"})
    assert refused.status_code == 422
    assert client.post("/api/score", files={"picture": ("a.gif", b"GIF89a")}).status_code == 422


def test_the_score_runs_on_the_processor_of_the_server(client, monkeypatch):
    asked = []
    monkeypatch.setattr("unrain.score.scorer", lambda processor: asked.append(processor) or scorer())
    assert client.post("/api/score", files={"picture": ("launch.jpg", LAUNCH)}).is_success
    assert asked == [replace(ONE_THREAD, precision="fp32")]


@pytest.mark.parametrize("path", ["/api/derain", "/api/strength", "/api/score"])
def test_getting_what_takes_a_post_is_405(client, path):
    answer = client.get(path)
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    assert "POST a picture here" in answer.json()["detail"]
    assert client.put(path).status_code == 405


def test_malformed_requests(client):
    post = client.post
    assert post("/api/derain", content=picture()).status_code == 415
    assert post("/api/derain", json={"picture": "file:///etc/passwd"}).status_code == 415
    assert post("/api/derain", data={"picture": "/etc/passwd"}).status_code == 415
    headers = {"Content-Type": "multipart/form-data"}
    assert post("/api/derain", content=b"x", headers=headers).status_code == 400
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    for body in (b"", b"--b\r\n\r\nx", b"garbage", b"--b--", b"--b\r\nA: b\r\n\r\nx\r\n--b--\r\n"):
        assert post("/api/derain", content=body, headers=headers).status_code in (400, 422)
    many = [("picture", ("a.png", picture())), ("picture", ("b.png", picture()))]
    assert post("/api/derain", files=many).status_code == 400
    path = {"picture": (None, "/etc/passwd")}
    assert post("/api/derain", files=path).status_code == 422
    fields = {f"field{number}": "x" for number in range(40)}
    assert send(client, **fields).status_code == 400
    assert send(client, model="x" * 10_000).status_code == 400
    assert client.get("/api/derain").status_code in (404, 405)
    assert client.get("/../../etc/passwd").status_code == 404
    assert client.get("/%2e%2e/%2e%2e/app.py").status_code == 404


NONSENSE = {
    "origin": {"Origin": "http://["},
    "origin without end": {"Origin": "http://[::1"},
    "charset": {"Content-Type": "multipart/form-data; boundary=b; charset=undefined"},
    "length": {"Content-Length": "nonsense"},
    "length below zero": {"Content-Length": "-5"},
    "length of many digits": {"Content-Length": "9" * 5000},
    "length in other digits": {"Content-Length": "\N{ARABIC-INDIC DIGIT FIVE}"},
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_in_a_header_is_a_bad_request_with_security_headers(client, kind):
    part = b'Content-Disposition: form-data; name="picture"; filename="a.png"'
    body = b"--b\r\n" + part + b"\r\n\r\n" + picture() + b"\r\n--b--\r\n"
    sent = {"Content-Type": "multipart/form-data; boundary=b", **NONSENSE[kind]}
    headers = [(name, value.encode()) for name, value in sent.items()]
    answer = client.post("/api/derain", content=body, headers=headers)
    assert answer.status_code == 400, answer.text
    assert list(answer.json()) == ["detail"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def bomb(width=60_000, height=60_000):
    """A PNG of a few kilobytes that says it holds 3.6 gigapixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (8_000, 5_001), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused_by_its_header(client, size):
    start = time.monotonic()
    answer = send(client, bomb(*size))
    assert answer.status_code == 413
    assert "megapixels" in answer.json()["detail"]
    assert time.monotonic() - start < 10


def test_a_tiff_of_many_directories_does_not_hold_the_network(client):
    tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 64)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    size = 2 + len(entries) + 4
    pages = 5000
    starts = [72 + size * page for page in range(1, pages)] + [0]
    directories = [struct.pack("<H", len(tags)) + entries + struct.pack("<I", start) for start in starts]
    data = b"II*\0" + struct.pack("<I", 72) + bytes(64) + b"".join(directories)
    start = time.monotonic()
    answer = send(client, data)
    assert answer.status_code == 422
    assert "split it first" in answer.json()["detail"]
    assert time.monotonic() - start < 15


def test_oversized_uploads_with_and_without_a_length(model_folder):
    with limited(model_folder, upload=100_000) as (client, queue):
        assert send(client, bytes(100_001)).status_code == 413
        assert send(client, bytes(400_000)).status_code == 413
        read = 0

        def body():
            nonlocal read
            yield b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
            for _ in range(1000):
                read += 10_000
                yield bytes(10_000)

        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = client.post("/api/derain", content=body(), headers=headers)
        assert "content-length" not in answer.request.headers
        assert answer.status_code == 413
        assert "0.1 MB" in answer.json()["detail"]
        assert queue.reserved == 0
        assert send(client).status_code == 200


def test_names_from_outside_are_harmless(client):
    assert harmless("../../etc/passwd") == "passwd"
    assert harmless("C:\\Users\\me\\rain.jpg") == "rain.jpg"
    assert harmless('a"\r\nSet-Cookie: x.png') == "a___Set-Cookie_ x.png"
    assert harmless(None) == harmless("..") == harmless("") == "picture"
    assert len(harmless("x" * 999 + ".png")) < 110
    answer = send(client, name="Straßenbahn 雨.png")
    assert (
        "filename*=UTF-8''Stra%C3%9Fenbahn%20%E9%9B%A8_derained.png" in answer.headers["content-disposition"]
    )


# --------------------------------------------------------------------------------------------- who may ask


def test_security_headers_are_on_every_answer(client):
    answers = [client.get(path) for path in ("/", "/openapi.json", "/nothing", "/api/models")]
    answers += [send(client, b"x"), client.get("/", headers={"Host": "evil.example"})]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] in ("no-store", "no-cache")
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "127.8.0.1"])
def test_own_names(client, host):
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "192.168.1.2", "", "a@b", "[::1"],
)
def test_names_of_others(client, host):
    assert client.get("/healthz", headers={"Host": host}).status_code == 421


def test_names_where_others_can_reach_it(model_folder):
    models = [zoo.find(model_folder / "tiny.onnx")]
    guard = create(models, processor=ONE_THREAD, loopback=False, hosts=["Rain.example.org"])
    for host in ("192.168.1.2:8000", "localhost", f"{socket.gethostname()}:80", "rain.example.org"):
        assert guard.knows(host)
    assert not guard.knows("evil.example")


def test_pages_of_other_sites_may_not_post(client):
    post = client.post
    assert post("/api/derain", headers={"Origin": "https://evil.example"}).status_code == 403
    assert post("/api/derain", headers={"Origin": "null"}).status_code == 403
    assert post("/api/derain", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert post("/api/derain", headers={"Origin": URL}).status_code == 415
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/api/derain", headers=preflight)
    assert answer.status_code == 403
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_the_page_names_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for file in STATIC.iterdir():
        if file.suffix in (".html", ".css", ".js") and not file.name.startswith("img-comparison-slider"):
            for line in file.read_text().splitlines():
                assert "http://www.w3.org/" in line or "://" not in line, f"{file.name}: {line}"
        assert client.get(f"/{file.name}").status_code == 200
    assert (STATIC / "img-comparison-slider.LICENSE.txt").read_text().startswith("MIT License")


# ------------------------------------------------------------------------------------------------ the queue


def ask(client, answers, **fields):
    thread = threading.Thread(target=lambda: answers.append(send(client, **fields)), daemon=True)
    thread.start()
    return thread


def test_a_full_queue_says_when_to_come_again(model_folder):
    engine = Doorkeeper()
    with limited(model_folder, engine, queue=2) as (client, queue):
        answers = []
        threads = [ask(client, answers, ticket=f"a-long-enough-ticket-{n}") for n in range(3)]
        wait_for(lambda: len(queue.pending) == 3)
        refused = send(client)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert refused.json()["detail"] == "2 pictures are waiting already, try again"
        ahead = [client.get(f"/api/progress/a-long-enough-ticket-{n}").json()["ahead"] for n in range(3)]
        assert sorted(ahead) == [0, 1, 2]
        taken = send(client, ticket="a-long-enough-ticket-1")
        assert taken.status_code == 429
        engine.gate.release(3)
        for thread in threads:
            thread.join(20)
        assert [answer.status_code for answer in answers] == [200] * 3
        assert queue.pending == []
        assert queue.reserved == 0
        assert client.get("/api/progress/a-long-enough-ticket-0").status_code == 404


def test_a_ticket_in_use_is_refused(model_folder):
    engine = Doorkeeper()
    with limited(model_folder, engine) as (client, queue):
        answers = []
        thread = ask(client, answers, ticket="a-long-enough-ticket")
        wait_for(lambda: queue.pending)
        assert "in use" in send(client, ticket="a-long-enough-ticket").json()["detail"]
        engine.gate.release()
        thread.join(20)


def test_what_takes_too_long_is_given_up(model_folder):
    engine = Doorkeeper()
    with limited(model_folder, engine, timeout=0.3) as (client, queue):
        late = send(client)
        assert late.status_code == 503
        assert "took more than 0.3 seconds" in late.json()["detail"]
        assert queue.pending == []
        assert queue.reserved == 0
        engine.gate.release(9)
        assert send(client).status_code == 200


def test_memory_has_a_bound(model_folder):
    engine = Doorkeeper()
    with limited(model_folder, engine, upload=10_000, files=2) as (client, queue):
        answers = []
        thread = ask(client, answers)
        wait_for(lambda: queue.pending)
        assert queue.reserved > 0
        full = send(client, bytes(30_000))
        assert full.status_code == 429
        engine.gate.release()
        thread.join(20)
        assert queue.reserved == 0


def test_a_fault_inside_tells_nothing(model_folder):
    class Broken(Doorkeeper):
        def step(self, rainy, estimate):
            raise RuntimeError("secret")

    app = create([zoo.find(model_folder / "tiny.onnx")], processor=ONE_THREAD)
    app.app.state.queue.runner.engines["tiny"] = Broken()
    with TestClient(app, base_url=URL, raise_server_exceptions=False) as client:
        answer = send(client)
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "content-security-policy" in answer.headers
        assert client.get("/healthz").status_code == 200


def test_many_clients_at_once_get_right_answers_or_are_told_to_come_again(model_folder):
    jobs = []
    for seed in range(4):
        data = picture(seed=seed)
        jobs.append((data, expected(model_folder, data, "PNG")[0]))
    outcomes = []

    def ask_often(client, number):
        for turn in range(4):
            data, right = jobs[(number + turn) % 4]
            answer = send(client, data)
            outcomes.append((answer.status_code, answer.content == right, "retry-after" in answer.headers))

    with (
        running(model_folder, queue=3) as (port, queue),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        threads = [threading.Thread(target=ask_often, args=(client, number)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert queue.pending == []
        wait_for(lambda: queue.reserved == 0)
    assert len(outcomes) == 64
    assert set(outcomes) <= {(200, True, False), (429, False, True)}
    assert (200, True, False) in outcomes


def test_the_command_serves_until_interrupted(tiny_model):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "unrain", "serve", "--port", "0", "--model", str(tiny_model)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            first = process.stderr.readline()
            url = re.search(r"http://127\.0\.0\.1:\d+/", first)[0]
            assert httpx.get(f"{url}api/models", timeout=60).json()[0]["name"] == "tiny"
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr.read() == "unrain: stopped\n"
        finally:
            process.kill()


# --------------------------------------------------------------------------------------- malicious clients


def test_clients_that_hang_up_free_their_place(model_folder):
    engine = Doorkeeper()
    with running(model_folder, engine) as (port, queue):
        url = f"http://127.0.0.1:{port}/api/derain"
        with pytest.raises(httpx.TimeoutException):
            httpx.post(url, files={"picture": ("a.png", picture())}, timeout=0.5)
        wait_for(lambda: not queue.pending and not queue.reserved)
        engine.gate.release(9)
        answer = httpx.post(url, files={"picture": ("a.png", picture())}, timeout=20)
        assert answer.status_code == 200


def test_uvicorn_has_the_internals_that_the_idle_timeout_relies_on(model_folder, monkeypatch):
    connections = []
    made = server.IdleTimeout.connection_made

    def recorded(self, transport):
        made(self, transport)
        connections.append((self, self.cycle))

    monkeypatch.setattr(server.IdleTimeout, "connection_made", recorded)
    with running(model_folder) as (port, _), httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/healthz").status_code == 200
        ((protocol, cycle),) = connections
        assert callable(protocol.loop.call_later)
        assert callable(protocol.transport.abort)
        assert cycle is None
        wait_for(lambda: protocol.cycle.response_complete)
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (bounds,) = (package for package in packages["web"] if package.startswith("uvicorn"))
    assert ",<" in bounds


def test_nonsense_after_an_answer_ends_the_connection(model_folder, caplog):
    with running(model_folder) as (port, _), socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(20)
        head = b"POST /api/derain HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head)
        assert b" 415 " in client.recv(65_536).splitlines()[0]
        client.sendall(b"no length of a chunk\r\n")
        cut(client)
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_nonsense_before_an_answer_is_answered_once(model_folder, caplog):
    """The application may know its answer before it has read the body, in which uvicorn finds nonsense."""
    with running(model_folder) as (port, _), socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(20)
        head = b"POST /api/derain HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head + b"no length of a chunk\r\n")
        answer = cut(client)
        assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def test_slow_clients_are_cut_and_others_are_served(model_folder, monkeypatch):
    monkeypatch.setattr(server.IdleTimeout, "idle", 1.0)
    with running(model_folder, transfer=1.0) as (port, queue):
        silent = socket.create_connection(("127.0.0.1", port))
        headless = socket.create_connection(("127.0.0.1", port))
        headless.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        bodiless = socket.create_connection(("127.0.0.1", port))
        head = (
            b"POST /api/derain HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
        )
        part = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
        bodiless.sendall(head + part + bytes(5000))
        wait_for(lambda: queue.reserved >= 5000)
        url = f"http://127.0.0.1:{port}"
        answer = httpx.post(f"{url}/api/derain", files={"picture": ("a.png", picture())}, timeout=20)
        assert answer.status_code == 200
        for client in (silent, headless, bodiless):
            client.settimeout(10)
        assert silent.recv(100) == b""
        assert cut(headless) == b""
        assert b" 408 " in cut(bodiless).splitlines()[0]
        wait_for(lambda: queue.reserved == 0)
        assert httpx.get(f"{url}/healthz").json()["pictures"] == 0


def cut(client):
    """Everything that still comes until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(65_536):
            received += piece
    return received


def test_an_answer_that_is_not_received_is_dropped(model_folder, monkeypatch):
    monkeypatch.setattr(server.IdleTimeout, "idle", 1.0)
    engine = Doorkeeper()
    with running(model_folder, engine, transfer=1.0) as (port, queue):
        noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "BMP")
        request = httpx.Request(
            "POST", f"http://127.0.0.1:{port}/api/derain", files={"picture": ("a.bmp", buffer.getvalue())}
        )
        lazy = socket.socket()
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.connect(("127.0.0.1", port))
        head = (
            f"POST /api/derain HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {request.headers['content-type']}"
        )
        head += f"\r\nContent-Length: {request.headers['content-length']}\r\n\r\n"
        lazy.sendall(head.encode() + request.read())
        wait_for(lambda: queue.pending, 20)
        engine.gate.release(9)
        wait_for(lambda: not queue.pending and queue.reserved, 60)
        wait_for(lambda: queue.reserved == 0)
        lazy.settimeout(10)
        assert len(cut(lazy)) < len(buffer.getvalue())


def test_no_file_is_left_or_even_written(model_folder, monkeypatch, tmp_path):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(tempfile, "_TemporaryFileWrapper", None)
    with limited(model_folder) as (client, _):
        # Above the megabyte from which the form parser would write into a file.
        large = picture("BMP", 640, 700)
        assert send(client, large, rain_layer="true").status_code == 200
        assert strengthened(client, large, large, strength="0.5").status_code == 200
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_one_line(model_folder):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UnrainError, match=f"port {port} is in use"):
            server.serve(port=port, models=[zoo.find(model_folder / "tiny.onnx")], say=lambda line: None)
