"""Pictures and videos at once on a server of its own; too long for a test.

    python tests/load_web.py --seconds 60 --rounds 5

Twelve clients send pictures, one after the other, and compare every answer byte for byte with what the
command line would write; in the second half of each round three more send videos, compare the frames of every
result, and cancel every fourth. Prints what came of the requests, and how long a picture took with videos
beside it and without, by turns.
"""

import argparse
import asyncio
import io
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import httpx
import numpy as np
from PIL import Image

from toys import ROOT, natural
from toys_video import clip
from unrain import image, video
from unrain.derainer import Derainer

PICTURES, VIDEOS = 12, 3
MODEL = "rdmc-lite-xs"


def pictures(derainer):
    """Small files of three kinds with the right answers."""
    for seed in range(9):
        kind = ("JPEG", "PNG", "TIFF")[seed % 3]
        buffer = io.BytesIO()
        Image.fromarray(natural(96, 128, seed)).save(buffer, kind)
        source = image.decode(buffer.getvalue(), "picture")
        yield buffer.getvalue(), image.encode(replace(source, pixels=derainer(source.pixels)), kind)[0]


def frames(file):
    with av.open(file) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


class Load:
    """What is sent, and what came of it."""

    def __init__(self, process, port, folder):
        self.process, self.url = process, f"http://127.0.0.1:{port}"
        derainer = Derainer(MODEL, device="cpu", threads=1)
        self.jobs = list(pictures(derainer))
        self.clip = clip(folder / "clip.mp4", frames=20, size=(160, 120))
        video.derain(self.clip, folder / "right.mp4", derainer)
        self.right = frames(str(folder / "right.mp4"))
        self.counts, self.waits, self.peak = Counter(), ([], []), Counter()

    def memory(self):
        """The server, then its worker, in MB."""
        pids = [self.process.pid]
        tasks = Path(f"/proc/{pids[0]}/task").glob("*/children")
        children = [child for task in tasks for child in task.read_text().split()]
        for name, pid in zip(("server", "worker"), [*pids, *children], strict=False):
            status = Path(f"/proc/{pid}/status").read_text()
            rss = int((re.search(r"VmRSS:\s+(\d+)", status) or [0, 0])[1]) // 1024
            self.peak[name] = max(self.peak[name], rss)

    async def half(self, seconds, *, videos):
        stop = time.monotonic() + seconds
        waits: list[float] = []
        clients = [self.picture_client(stop, waits) for _ in range(PICTURES)]
        if videos:
            clients += [self.video_client(stop) for _ in range(VIDEOS)]
        await asyncio.gather(*clients)
        self.waits[videos].append(statistics.median(waits))
        self.memory()

    async def picture_client(self, stop, waits):
        async with httpx.AsyncClient(timeout=120) as http:
            while time.monotonic() < stop:
                data, right = random.choice(self.jobs)
                start = time.monotonic()
                answer = await http.post(f"{self.url}/api/derain", files={"picture": ("a.bin", data)})
                if answer.status_code == 200:
                    waits.append(time.monotonic() - start)
                    self.counts["picture right" if answer.content == right else "picture WRONG"] += 1
                else:
                    self.counts[f"picture {answer.status_code}"] += 1
                    await asyncio.sleep(random.uniform(0.05, 0.3))

    async def video_client(self, stop):
        async with httpx.AsyncClient(timeout=120) as http:
            while time.monotonic() < stop:
                file = {"video": ("clip.mp4", self.clip.read_bytes())}
                told = (await http.post(f"{self.url}/api/videos", files=file)).json()
                address = f"{self.url}/api/videos/{told['id']}"
                cancel = random.random() < 0.25
                while told["state"] in ("waiting", "working"):
                    if cancel and told["done"]:
                        break
                    await asyncio.sleep(0.1)
                    told = (await http.get(address)).json()
                if told["state"] == "done":
                    result = (await http.get(f"{address}/result")).content
                    same = np.array_equal(frames(io.BytesIO(result)), self.right)
                    self.counts["video right" if same else "video WRONG"] += 1
                else:
                    self.counts["video cancelled" if cancel else f"video {told['state']}"] += 1
                    await http.delete(address)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        temporary = Path(name) / "server"
        temporary.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(temporary)}
        command = [sys.executable, "-m", "unrain", "serve", "--port", "0", "--threads", "1", "--model", MODEL]
        with subprocess.Popen(
            [*command, "--device", "cpu"], env=environment, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                port = int(re.search(r":(\d+)/", process.stderr.readline())[1])
                load = Load(process, port, Path(name))
                for _ in range(asked.rounds):
                    for videos in (False, True):
                        asyncio.run(load.half(asked.seconds / asked.rounds / 2, videos=videos))
                left = httpx.get(f"{load.url}/metrics").text
            finally:
                process.terminate()
                ended = process.wait(60)
        without, beside = map(statistics.median, load.waits)
        lines = (
            f"requests: {dict(load.counts)}",
            f"a picture's median: {1000 * without:.0f} ms without videos, {1000 * beside:.0f} ms beside, "
            f"ratio {beside / without:.2f}",
            f"memory: {dict(load.peak)} MB",
            *re.findall(r"^unrain_video(?:s|_bytes) .*|^unrain_videos_over_total.*", left, re.MULTILINE),
            f"exit code {ended}, files left: {[str(path) for path in temporary.rglob('*')]}",
        )
        sys.stdout.write("\n".join(lines) + "\n")
        if any("WRONG" in name for name in load.counts):
            sys.exit(1)


if __name__ == "__main__":
    main()
