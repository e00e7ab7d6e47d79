"""A load test: fifty clients at once and malicious ones beside them; too long for the test suite.

    PYTHONPATH=tests python tests/web/load.py 60 [options of `unrain serve`, such as --isolate]

For that many seconds each client sends pictures, one after the other, and compares every answer byte for byte
with what the command line would write. Four connections a second are opened that send nothing, half a
request, noise, or the start of 20 MB, and are never closed; one client sends JPEGs of 15,000 scans.
"""

import asyncio
import io
import random
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

import toys_bombs
from toys import natural
from unrain import image
from unrain.derainer import Derainer

CLIENTS = 50
RUDE = (
    b"",
    b"GET / HT",
    b"\x16\x03\x01garbage\r\n\r\n",
    b"POST /api/derain HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 20000000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n",
)


def pictures():
    """Twelve small files of four kinds with the right answers; a third of them are 2 MB nevertheless."""
    derainer = Derainer(threads=1)
    for seed in range(12):
        kind, height, width, more = [
            ("JPEG", 96, 128, 0),
            ("PNG", 64, 96, 0),
            ("PNG", 96, 96, 2_000_000),
            ("TIFF", 80, 80, 0),
        ][seed % 4]
        buffer = io.BytesIO()
        Image.fromarray(natural(height, width, seed)).save(buffer, kind)
        data = buffer.getvalue() + bytes(more)
        source = image.decode(data, "picture")
        yield data, image.encode(replace(source, pixels=derainer(source.pixels)), kind)[0]


class Load:
    """What is sent, and what came of it."""

    def __init__(self, process, port, seconds):
        self.process, self.port = process, port
        self.url = f"http://127.0.0.1:{port}"
        self.jobs = list(pictures())
        self.stop = time.monotonic() + seconds
        self.counts, self.waits, self.peak, self.slowest = Counter(), [], 0.0, 0.0

    def memory(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    async def run(self):
        await asyncio.gather(
            *(self.client() for _ in range(CLIENTS)), self.rude(), self.bombs(), self.watch()
        )

    async def client(self):
        async with httpx.AsyncClient(timeout=60) as http:
            while time.monotonic() < self.stop:
                data, right = random.choice(self.jobs)
                start = time.monotonic()
                try:
                    answer = await http.post(f"{self.url}/api/derain", files={"picture": ("a.bin", data)})
                except httpx.TransportError as error:
                    self.counts[type(error).__name__] += 1
                    continue
                if answer.status_code == 200:
                    self.waits.append(time.monotonic() - start)
                    self.counts["right" if answer.content == right else "WRONG"] += 1
                else:
                    self.counts[answer.status_code] += 1
                    await asyncio.sleep(random.uniform(0.1, 1))

    async def rude(self):
        held = []
        while time.monotonic() < self.stop:
            for first in RUDE:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(first)
                held.append(writer)
            self.counts["rude"] += len(RUDE)
            await asyncio.sleep(1)

    async def bombs(self):
        data = toys_bombs.scans(15_000, 2048)
        async with httpx.AsyncClient(timeout=60) as http:
            while time.monotonic() < self.stop:
                answer = await http.post(f"{self.url}/api/derain", files={"picture": ("a.jpg", data)})
                self.counts[f"bombs: {answer.status_code}"] += 1
                await asyncio.sleep(0.2)

    async def watch(self):
        async with httpx.AsyncClient(timeout=30) as http:
            while time.monotonic() < self.stop:
                self.peak = max(self.peak, self.memory())
                start = time.monotonic()
                assert (await http.get(f"{self.url}/healthz")).status_code == 200
                self.slowest = max(self.slowest, time.monotonic() - start)
                await asyncio.sleep(0.5)


def main(seconds, *options):
    command = [sys.executable, "-m", "unrain", "serve", "--port", "0", "--threads", "1", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            port = int(re.search(r":(\d+)/", process.stderr.readline())[1])
            load = Load(process, port, seconds)
            before = load.memory()
            asyncio.run(load.run())
            time.sleep(2)
            waits = load.waits or [float("nan")]
            sys.stdout.write(
                f"{dict(load.counts)}\n"
                f"wait for a right answer: median {np.median(waits):.2f} s, longest {max(waits):.2f} s; "
                f"slowest /healthz {load.slowest:.2f} s\n"
                f"memory: {before:.0f} MB before, {load.peak:.0f} at most, {load.memory():.0f} after\n"
            )
        finally:
            process.terminate()


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
