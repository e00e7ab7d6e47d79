"""Toys of the tests of the server: an engine that waits, a real server, pictures and what is to come back."""

import contextlib
import io
import socket
import threading
from dataclasses import replace

from PIL import Image

from toys import natural
from unrain import image, zoo
from unrain.derainer import Derainer
from unrain.devices import Processor
from unrain.web import server
from unrain.web.app import create
from unrain.web.queue import Limits

ONE_THREAD = Processor("cpu", threads=1)
WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


class Doorkeeper:
    """An engine that waits before each recursion until the test opens the gate."""

    multiple, halo, recursions, recursive, levels = 8, 8, 1, False, 1

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def step(self, rainy, estimate):
        self.entered.release()
        assert self.gate.acquire(timeout=120)
        return rainy


@contextlib.contextmanager
def running(model_folder, engine=None, **limits):
    """A real server on loopback; gives its port and its queue."""
    app = create([zoo.find(model_folder / "tiny.onnx")], processor=ONE_THREAD, limits=Limits(**limits))
    if engine is not None:
        app.app.state.queue.runner.engines["tiny"] = engine
    listener = socket.create_server(("127.0.0.1", 0))
    process = server.configured(app)
    thread = threading.Thread(target=process.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1], app.app.state.queue
    finally:
        process.should_exit = True
        thread.join(10)
    assert not thread.is_alive()


def picture(kind="PNG", height=40, width=56, seed=0, **options):
    buffer = io.BytesIO()
    Image.fromarray(natural(height, width, seed)).save(buffer, kind, **options)
    return buffer.getvalue()


def expected(model_folder, data, kind, strength=1.0, **options):
    """What the command line would write."""
    source = image.decode(data, "x")
    result = Derainer(model_folder / "tiny.onnx", device="cpu", threads=1, **options).derain(source.pixels)
    return image.encode(replace(source, pixels=result.at(strength)), kind)[0], result, source
