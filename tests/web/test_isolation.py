"""`unrain serve --isolate`: the same answers, and a picture that breaks the worker harms no other."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra web")
pytest.importorskip("uvicorn", reason="needs the extra web")
pytest.importorskip("python_multipart", reason="needs the extra web")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from fastapi.testclient import TestClient  # noqa: E402

from toys import ROOT, natural, png_of  # noqa: E402
from toys_web import ONE_THREAD, Doorkeeper, picture  # noqa: E402
from unrain import cli, image, zoo  # noqa: E402
from unrain.errors import UnrainError  # noqa: E402
from unrain.web import messages, queue, runner, server  # noqa: E402
from unrain.web.app import create  # noqa: E402
from unrain.web.job import AbandonedError, Answer, StrengthJob, WebJob, WebOptions  # noqa: E402
from unrain.web.queue import Limits  # noqa: E402

URL = "http://127.0.0.1:8000"
# SIGSTOP: a decoder that never comes back, as its server sees it.
signals = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")


@pytest.fixture(scope="module")
def pair(model_folder):
    """The clients of a server without and of one with a worker process."""
    models = [zoo.find(model_folder / "tiny.onnx")]
    with (
        TestClient(create(models, processor=ONE_THREAD), base_url=URL) as plain,
        TestClient(create(models, processor=ONE_THREAD, isolate=True), base_url=URL) as isolated,
    ):
        yield plain, isolated


@pytest.fixture
def isolated(model_folder):
    """A function that gives a client of a server with a worker process, and its queue."""
    clients = []

    def make(**limits):
        models = [zoo.find(model_folder / "tiny.onnx")]
        app = create(models, processor=ONE_THREAD, isolate=True, limits=Limits(**limits))
        client = TestClient(app, base_url=URL)
        clients.append(client.__enter__())
        return client, app.app.state.queue

    yield make
    for client in clients:
        client.__exit__(None, None, None)


def send(client, data=None, name="photo.png", **fields):
    files = {"picture": (name, picture() if data is None else data)}
    return client.post("/api/derain", files=files, data=fields)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------- same answers


def wide():
    return image.encode(image.Picture((natural(24, 32).astype(np.uint16) * 257) ^ 3), "PNG")[0]


ASKED = {
    "JPEG": (lambda: picture("JPEG"), {}),
    "16 bits": (wide, {}),
    "notes": (wide, {"format": "jpeg"}),
    "all files": (
        picture,
        {"rain_layer": "true", "compare": "true", "preview": "true", "difference": "true"},
    ),
    "strength": (picture, {"strength": "0.4"}),
    "recursions": (picture, {"recursions": "5", "until": "200", "tile": "64"}),
    "no rain": (lambda: png(np.full((40, 56, 3), 90, np.uint8)), {}),
    "noise": (lambda: b"noise", {}),
    "cut off": (lambda: picture()[:400], {}),
    "too large": (lambda: png_of(60_000, 60_000), {}),
    "tile": (picture, {"tile": "8"}),
}


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def said(answer):
    headers = {name: value for name, value in answer.headers.items() if name != "unrain-seconds"}
    return answer.status_code, headers, contents(answer)


def contents(answer):
    # A zip has the time in it.
    if answer.headers["content-type"] != "application/zip":
        return answer.content
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("kind", ASKED)
def test_answers_are_the_same_with_and_without(pair, kind):
    make, fields = ASKED[kind]
    plain, isolated = (said(send(client, make(), **fields)) for client in pair)
    assert plain == isolated
    if kind == "notes":
        assert "16 are reduced to 8" in isolated[1]["unrain-notes"]


@pytest.mark.parametrize("strength", ["0", "0.7"])
def test_strengths_are_the_same_with_and_without(pair, strength):
    with zipfile.ZipFile(io.BytesIO(send(pair[1], difference="true").content)) as archive:
        difference = archive.read("difference.png")
    files = {"picture": ("a.png", picture()), "difference": ("difference.png", difference)}
    plain, isolated = (
        client.post("/api/strength", files=files, data={"strength": strength}) for client in pair
    )
    assert isolated.status_code == 200
    assert said(plain) == said(isolated)
    wrong = {**files, "difference": ("difference.png", picture(height=41))}
    plain, isolated = (client.post("/api/strength", files=wrong) for client in pair)
    assert isolated.status_code == 422
    assert said(plain) == said(isolated)


def test_models_are_described_the_same(pair):
    plain, isolated = (client.get("/api/models").json() for client in pair)
    assert plain == isolated


def test_progress_comes_through(pair):
    job = WebJob(picture(height=300, width=300), "a.png", WebOptions(tile=128))
    pair[1].app.app.state.queue.runner.run(job)
    assert job.done == job.total > 1
    assert not job.data


# ------------------------------------------------------------------------------------------- a broken worker


@signals
def test_a_file_that_is_not_decoded_in_time_is_refused_and_others_are_served(isolated):
    client, queue = isolated(decoding=0.3)
    right = send(client).content
    first = queue.runner.pid
    os.kill(first, signal.SIGSTOP)
    answer = send(client)
    assert answer.status_code == 422
    assert answer.json()["detail"] == (
        "photo.png: took more than 0.3 seconds to decode, open it in another program and save it again"
    )
    assert send(client).content == right
    assert queue.runner.pid != first
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


@signals
def test_what_nobody_waits_for_leaves_the_network(isolated, monkeypatch):
    monkeypatch.setattr(runner, "_GRACE", 0.1)
    monkeypatch.setattr(queue, "_PATIENCE", 0)
    client, jobs = isolated(timeout=0.3)
    os.kill(jobs.runner.pid, signal.SIGSTOP)
    late = send(client)
    assert late.status_code == 503 and "took more than 0.3 seconds" in late.json()["detail"]
    wait_for(lambda: jobs.running is None)
    assert client.get("/healthz").json()["status"] == "ok"
    jobs.limits = replace(jobs.limits, timeout=60)
    assert send(client).status_code == 200


@signals
def test_a_worker_that_dies_fails_one_picture_and_no_other(isolated):
    client, queue = isolated()
    right = send(client).content
    os.kill(queue.runner.pid, signal.SIGSTOP)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(send(client))) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(queue.pending) == 3 and queue.running is not None)
    os.kill(queue.runner.pid, signal.SIGKILL)
    for thread in threads:
        thread.join(60)
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503]
    assert [answer.content == right for answer in answers].count(True) == 2
    (broken,) = (answer for answer in answers if answer.status_code == 503)
    assert broken.json()["detail"].startswith("photo.png: broke off, it needs more memory")
    assert queue.pending == [] and queue.reserved == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/limits"), reason="needs Linux")  # noqa: PTH110
def test_a_picture_that_needs_too_much_memory_is_refused_and_others_are_served(isolated):
    client, _ = isolated(memory=650_000_000)
    big = png(np.full((6_300, 6_300, 3), (1, 2, 3), np.uint8))
    answer = send(client, big)
    assert answer.status_code in (422, 503)
    assert "memory" in answer.json()["detail"]
    assert send(client).status_code == 200


def test_a_worker_that_cannot_open_a_model_is_one_line(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"noise")
    with pytest.raises(UnrainError, match=r"broken\.onnx") as caught:
        create([zoo.find(tmp_path / "broken.onnx")], isolate=True)
    assert "\n" not in str(caught.value)


def test_the_worker_ends_with_its_server(isolated):
    client, queue = isolated()
    process = queue.runner._worker
    with client:
        pass
    assert process.poll() is not None
    with pytest.raises(AbandonedError):
        queue.runner.run(WebJob(picture(), "a.png", WebOptions()))


def test_the_worker_ends_when_its_server_is_killed(isolated):
    _, queue = isolated()
    process = queue.runner._worker
    process.stdin.close()
    assert process.wait(60) == 0


def test_it_is_the_default_where_others_can_reach_the_server(monkeypatch):
    asked = []

    def create(*_, isolate, **__):
        asked.append(isolate)
        raise UnrainError("enough")

    monkeypatch.setattr(server, "create", create)
    for host, isolate in (("127.0.0.1", None), ("0.0.0.0", None), ("127.0.0.1", True), ("0.0.0.0", False)):
        with pytest.raises(UnrainError, match="enough"):
            server.serve(host=host, port=0, isolate=isolate, say=print)
    assert asked == [False, True, True, False]
    for option in ("--isolate", "--no-isolate"):
        assert cli.main(["serve", "--port", "0", option]) == 1
    assert asked[4:] == [True, False]


def test_the_command_serves_in_a_worker_and_leaves_none_behind(tiny_model):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "unrain",
        "serve",
        "--isolate",
        "--port",
        "0",
        "--model",
        str(tiny_model),
    ]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            port = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stderr.readline())[1]
            files = {"picture": ("a.png", picture())}
            answer = httpx.post(f"http://127.0.0.1:{port}/api/derain", files=files, timeout=60)
            assert answer.status_code == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            # The worker held this pipe too: it ends when both have.
            assert process.stderr.read() == "unrain: stopped\n"
        finally:
            process.kill()


# ---------------------------------------------------------------------------------------- without a worker


def test_health_tells_that_a_picture_cannot_be_stopped(model_folder, monkeypatch):
    monkeypatch.setattr(queue, "_PATIENCE", 0)
    app = create([zoo.find(model_folder / "tiny.onnx")], processor=ONE_THREAD, limits=Limits(timeout=0.3))
    engine = Doorkeeper()
    app.app.state.queue.runner.engines["tiny"] = engine
    with TestClient(app, base_url=URL) as client:
        assert client.get("/healthz").json() | {"version": ""} == {
            "status": "ok",
            "version": "",
            "pictures": 0,
            "busy": 0,
        }
        assert send(client).status_code == 503
        blocked = client.get("/healthz")
        assert blocked.status_code == 503
        assert blocked.json()["status"] == "blocked"
        assert blocked.json()["pictures"] == 0
        assert blocked.json()["busy"] > 0
        engine.gate.release(9)
        wait_for(lambda: client.get("/healthz").status_code == 200)


# ------------------------------------------------------------------------------------------------- messages


ANSWER = Answer(b"data", "image/png", "a.png", ("one", "two"), 2, 0.5, hardly_any_rain=False)


def test_jobs_and_answers_survive_the_way():
    assert messages.answer_of(b"".join(messages.answer_parts(ANSWER))) == ANSWER
    options = WebOptions(strength=0.3, tile=64, difference=True)
    job = StrengthJob(b"data", "ü.png", options, difference=b"difference")
    again = messages.job_of(b"".join(messages.job_parts(job)))
    assert type(again) is StrengthJob
    assert (again.data, again.name, again.options, again.difference) == (
        job.data,
        job.name,
        job.options,
        job.difference,
    )
    for error in (UnrainError("a"), image.TooManyPixelsError("b"), MemoryError("c"), AbandonedError()):
        again = messages.refusal_of(b"".join(messages.refusal_parts(error)))
        assert (type(again), str(again)) == (type(error), str(error))
    assert "secret" not in b"".join(messages.refusal_parts(RuntimeError("secret"))).decode()


WRONG = {
    "media type": {"media_type": "text/html"},
    "name": {"name": "../a.png"},
    "header": {"name": "a\r\nSet-Cookie: b"},
    "recursions": {"recursions": -1},
    "seconds": {"seconds": float("nan")},
    "notes": {"notes": "text"},
    "rain": {"hardly_any_rain": "perhaps"},
    "nothing": {"name": None},
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_answer_with_anything_wrong_in_it_is_none(kind):
    (_, header, *rest) = messages.answer_parts(ANSWER)
    changed = messages.packed({**json.loads(header), **WRONG[kind]}, rest[-1])
    with pytest.raises(messages.MessageError):
        messages.answer_of(b"".join(changed))


def test_noise_is_no_message():
    whole = b"".join(messages.answer_parts(ANSWER))
    for end in range(len(whole)):
        with pytest.raises(messages.MessageError):
            messages.answer_of(whole[:end])
    for noise in (b"", b"x", b"x" * 9, b"a" + b"\xff" * 8, b"a" + bytes(7) + b"\x09abc"):
        with pytest.raises(messages.MessageError):
            messages.receive(io.BytesIO(noise))
    with pytest.raises(messages.MessageError):
        messages.refusal_of(b"".join(messages.packed({"kind": "KeyboardInterrupt", "message": ""})))
    with pytest.raises(messages.MessageError):
        messages.unpacked(b"".join(messages.packed({}))[:8] + b"[]", 0)
    deep = b"[" * 100_000
    with pytest.raises(messages.MessageError):
        messages.unpacked(len(deep).to_bytes(8) + deep, 0)
