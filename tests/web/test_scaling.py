"""Behind a load balancer: readiness, counts for Prometheus, and an end that loses no picture."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="needs the extra web")
httpx = pytest.importorskip("httpx", reason="needs httpx")

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from toys import ROOT  # noqa: E402
from toys_web import ONE_THREAD, Doorkeeper, expected, picture, running  # noqa: E402
from unrain import zoo  # noqa: E402
from unrain.devices import Processor  # noqa: E402
from unrain.web import server  # noqa: E402
from unrain.web.app import create  # noqa: E402
from unrain.web.queue import Limits  # noqa: E402


def counts(text):
    """Every sample of Prometheus's text format, as the library's own parser reads it."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def requests(path, status, method="POST"):
    return ("unrain_requests_total", ("method", method), ("path", path), ("status", str(status)))


def test_what_prometheus_is_told(tiny_model):
    app = create([zoo.find(tiny_model)], processor=Processor(threads=1))
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for data in (picture(), picture(seed=1), b"no picture"):
            client.post("/api/derain", files={"picture": ("a.png", data)})
        client.get("/secret/path")
        client.get("/secret/other")
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = counts(answer.text)
    assert found[requests("/api/derain", 200)] == 2
    assert found[requests("/api/derain", 422)] == 1
    assert found[requests("other", 404, "GET")] == 2
    assert "secret" not in answer.text
    assert found[("unrain_picture_seconds_count",)] == 2
    assert found[("unrain_request_seconds_count", ("path", "/api/derain"))] == 3
    assert found[("unrain_pictures",)] == 0
    assert found[("unrain_ready",)] == 1


def test_a_full_server_is_healthy_but_not_ready(model_folder):
    engine = Doorkeeper()
    with running(model_folder, engine, queue=0) as (port, _), ThreadPoolExecutor() as pool:
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
        sent = pool.submit(httpx.post, f"{url}/api/derain", files={"picture": picture()}, timeout=60)
        assert engine.entered.acquire(timeout=60)
        answer = httpx.get(f"{url}/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "full"})
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert counts(httpx.get(f"{url}/metrics").text)[("unrain_pictures",)] == 1
        engine.gate.release()
        assert sent.result().status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 200


def test_sigterm_lets_pictures_end_and_takes_no_more(model_folder):
    engine = Doorkeeper()
    app = create([zoo.find(model_folder / "tiny.onnx")], processor=Processor(threads=1), limits=Limits())
    app.app.state.queue.runner.engines["tiny"] = engine
    process = server.configured(app, 60)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor() as pool:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=process.run, args=([listener],), daemon=True)
        thread.start()
        sent = [
            pool.submit(httpx.post, f"{url}/api/derain", files={"picture": picture(seed=n)}, timeout=60)
            for n in range(2)
        ]
        assert engine.entered.acquire(timeout=60)
        while app.app.state.queue.requests < 2:
            threading.Event().wait(0.01)
        process.handle_exit(signal.SIGTERM, None)
        answer = httpx.get(f"{url}/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "draining"})
        late = httpx.post(f"{url}/api/derain", files={"picture": picture()})
        assert (late.status_code, late.headers["retry-after"]) == (503, "1")
        assert late.json() == {"detail": "this server is about to end, try again"}
        for _ in sent:
            engine.gate.release()
        assert [one.result().status_code for one in sent] == [200, 200]
        thread.join(30)
    assert not thread.is_alive()


def test_for_a_while_pictures_are_still_taken_so_that_a_proxy_can_notice(model_folder, monkeypatch):
    now = [100.0]
    app = create([zoo.find(model_folder / "tiny.onnx")], processor=ONE_THREAD)
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr("unrain.web.server.time", clock)
    monkeypatch.setattr("unrain.web.queue.time", clock)
    process = server.configured(app, 60, 5)
    client = TestClient(app, base_url="http://127.0.0.1:8000")
    process.handle_exit(signal.SIGTERM, None)
    for now[0], taken, ends in ((104.9, 200, False), (105.0, 503, True)):
        assert client.get("/readyz").json() == {"status": "draining"}
        assert client.post("/api/derain", files={"picture": picture()}).status_code == taken
        asyncio.run(process.on_tick(1))
        assert process.should_exit is ends


def test_patience_ends_and_a_second_signal_ends_it_at_once(model_folder):
    app = create([zoo.find(model_folder / "tiny.onnx")], processor=Processor(threads=1))
    app.app.state.queue.requests = 1
    process = server.configured(app, 60)
    process.handle_exit(signal.SIGTERM, None)
    assert not process.should_exit
    process.handle_exit(signal.SIGTERM, None)
    assert process.should_exit
    without = server.configured(
        create([zoo.find(model_folder / "tiny.onnx")], processor=Processor(threads=1)), 0
    )
    without.handle_exit(signal.SIGTERM, None)
    assert without.should_exit


@pytest.mark.skipif(os.name != "posix", reason="needs SIGTERM")
def test_the_command_ends_well_after_sigterm(model_folder, tiny_model):
    command = [sys.executable, "-m", "unrain", "serve", "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [*command, "--model", str(tiny_model)], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stderr.readline()
        assert "serving at" in line
        data = picture()
        url = f"{line.split()[3]}api/derain"
        answer = httpx.post(url, files={"picture": ("a.png", data)}, timeout=60)
        assert answer.content == expected(model_folder, data, "PNG")[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert process.stderr.read() == "unrain: stopped\n"
    finally:
        process.kill()
        process.communicate()
