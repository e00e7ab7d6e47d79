"""`unrain serve` among many clients: good pictures, damaged ones, bombs, slow and senseless requests."""

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from attack import bombs, seeds
from attack.mutate import mutant
from attack.process import kill, leftovers, start, unrain, watched

# Fifty clients at once: with sound pictures, with damage, without manners; and two with videos.
GOOD, BAD, RUDE, FILMS = 30, 12, 8, 2
CLIENTS = GOOD + BAD + RUDE
_FILM = "sound.mp4"
_GOOD = ("rgb.png", "deep.png", "rgb.jpg", "lossless.webp", "rgb.tif", "rgb.bmp")
_BOMBS = (
    "scans.jpg",
    "rationals.tif",
    "thumbnails.png",
    "segments.jpg",
    "chunks.png",
    "huge.png",
    "text.png",
)
_MEGABYTES = 1500
# Seconds without any good answer after which a server that says it is well is not believed.
_SILENCE = 20.0
_BOUNDARY = "b0undary"
_FORM = f"multipart/form-data; boundary={_BOUNDARY}"
# fmt: off
_GET, _END = b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n", b"\r\n\r\n"
_POST = b"POST /api/derain HTTP/1.1\r\nHost: 127.0.0.1\r\n"
_RAW = (
    b"", b"GET / HT", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(200),
    b"PRI * HTTP/2.0\r\n\r\nSM" + _END, _GET % b"/" + b"X: y\r\n" * 20_000 + _END,
    _GET % (b"/" + b"a" * 200_000) + _END, _GET % b"/\0" + _END,
    _GET % b"/%2e%2e/%2e%2e/etc/passwd" + _END, _GET % b"/healthz" + b"Host: other" + _END,
    _POST + b"Content-Length: -1" + _END,
    _POST + b"Content-Length: 5\r\nContent-Length: 6" + _END + b"abcdef",
    _POST + b"Transfer-Encoding: chunked" + _END + b"f" * 16,
    _POST + b"Expect: 100-continue\r\nContent-Length: 9" + _END,
)
_HEADERS = tuple({name: value} for name, values in {
    "Origin": ("http://[", "null", "http://evil.example"),
    "Host": ("evil.example", "[", "127.0.0.1:99999999"),
    "Content-Type": (
        f"{_FORM}; charset=undefined", f"{_FORM}; charset=idna", "multipart/form-data", "text/plain",
        "multipart/form-data; boundary=" + "x" * 300, 'multipart/form-data; boundary="\xff"',
    ),
    "Sec-Fetch-Site": ("cross-site",), "Content-Encoding": ("gzip",), "Accept-Language": ("\xff" * 100,),
}.items() for value in values)
_FIELDS = (
    ("strength", "1e999"), ("strength", "nan"), ("recursions", "9" * 5000), ("recursions", "-1"),
    ("levels", "1e9"), ("model", "../../etc/passwd"), ("model", "\0"), ("ticket", "x" * 4000),
    ("unknown", "1"), ("", ""),
)
# fmt: on


class Load:
    """A server, those who use it and those who abuse it.

    Attributes:
        url: Address and port.
        right: The right answers to the good pictures, and to the sound video if there is PyAV.
        stop: Set when all are to come to an end.
        counts: What became of the requests.
    """

    def __init__(self, campaign, process, port, right, videos):
        self.campaign, self.process, self.port = campaign, process, port
        self.right, self.videos = right, videos
        self.stop, self.lock, self.counts = threading.Event(), threading.Lock(), Counter()
        self.last_good, self.peak = time.monotonic(), 0.0

    def request(self, method, path, body=None, headers=None, timeout=60):
        """Send a request; status, headers and body of its answer."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(line):
            line.request(method, path, body, headers or {})
            answer = line.getresponse()
            return answer.status, answer.headers, answer.read()

    def fault(self, kind, detail, files=()):
        with self.lock:
            self.campaign.fault(kind, detail, dict(files))

    def count(self, **more):
        with self.lock:
            self.campaign.count(**more)

    def picture(self, name, data, *, headers=None, fields=(), timeout=60):
        """Send a picture and judge whatever the answer is."""
        body = form(name, data, fields)
        status, got, answer = self.request(
            "POST", "/api/derain", body, {"Content-Type": _FORM, **(headers or {})}, timeout
        )
        if got.get("X-Content-Type-Options") != "nosniff":
            self.fault("wrong answer", f"{headers or name}\nno security headers with {status}", {name: data})
        if status >= 500 and status != 503:
            self.fault("wrong answer", f"{headers or fields or name}: status {status}", {name: data})
        if status != 200:
            with contextlib.suppress(ValueError):
                told = json.loads(answer)["detail"]
                if "\n" in told:
                    self.fault("stray line", f"{name}: more than a line\n{told}", {name: data})
        return status, answer

    def good(self, own):
        """A client that sends sound pictures and compares the answers."""
        while not self.stop.is_set():
            name = own.choice(_GOOD)
            try:
                status, answer = self.picture(name, seeds.pictures()[name])
            except OSError as error:
                self.fault("wrong answer", f"{type(error).__name__} instead of an answer to a sound picture")
                continue
            if status == 200:
                self.last_good = time.monotonic()
                self.count(results=1)
                self.counts["right"] += 1
                if answer != self.right[name]:
                    self.fault("wrong answer", "another picture than the command line's", {name: answer})
            elif status == 429:
                self.counts["busy"] += 1
                time.sleep(own.uniform(0.2, 1))
            elif not self.stop.is_set():
                self.fault("wrong answer", f"{answer[:300]!r}\nstatus {status} to a sound picture")

    def bad(self, own):
        """A client that sends damage, nonsense and now and then a bomb."""
        sound = seeds.pictures()
        while not self.stop.is_set():
            name = own.choice(list(sound))
            way = own.random()
            more = {}
            if way < 0.02:
                name = own.choice(_BOMBS)
                data = bombs.bomb(name)
            elif way < 0.6:
                data = mutant(own, sound[name], list(sound.values()))
            else:
                data = sound[name]
                more = {"headers": own.choice(_HEADERS)} if way < 0.8 else {"fields": [own.choice(_FIELDS)]}
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, _ = self.picture(name, data, **more)
                self.count(refused=int(status != 200), results=int(status == 200))

    def film(self, own):
        """A client that sends videos, most of them damaged, and follows each to its end."""
        while not self.stop.is_set():
            sound = own.random() < 0.25
            name = _FILM if sound else own.choice(list(self.videos))
            data = self.videos[name]
            data = data if sound else mutant(own, data, list(self.videos.values()))
            try:
                body = form(name, data, (), field="video")
                status, _, answer = self.request("POST", "/api/videos", body, {"Content-Type": _FORM})
                told = json.loads(answer)
                if status == 202 and (told := self.followed(told["id"])) is None:
                    return
                self.judge(name, data, status, told, sound=sound)
            except OSError as error:
                if not self.stop.is_set():
                    self.fault("wrong answer", f"{name}: {type(error).__name__}", {name: data})

    def followed(self, identifier):
        """Ask about a video until it is done or has failed; None if the attack ends before."""
        while not self.stop.wait(0.1):
            status, _, answer = self.request("GET", f"/api/videos/{identifier}")
            told = json.loads(answer)
            if status != 200 or told["state"] in ("done", "failed"):
                return told
        self.request("DELETE", f"/api/videos/{identifier}")
        return None

    def judge(self, name, data, status, told, *, sound):
        """Judge what became of a video, and fetch its result."""
        files, said = {name: data}, str(told.get("detail", ""))
        done = told.get("state") == "done"
        self.count(refused=int(not done), results=int(done))
        self.counts["videos"] += 1
        if status not in (202, 422, 429):
            self.fault("wrong answer", f"{name}: status {status}\n{said}", files)
        if "broke off" in said or "the server failed" in said:
            self.fault("crash", f"{name}\n{said}", files)
        if "\n" in said or "unrain-videos-" in said:
            self.fault("stray line", f"{name}: more than a line, or a path of the server's\n{said}", files)
        if not done:
            if sound and status != 429 and not self.stop.is_set():
                self.fault("wrong answer", f"{name}: {status}, {said}\na sound video is refused", files)
            return
        status, _, answer = self.request("GET", f"/api/videos/{told['id']}/result")
        if status != 200 or len(answer) != told["bytes"]:
            self.fault("wrong answer", f"{name}: status {status} and {len(answer)} bytes of a result", files)
        elif sound and answer != self.right[name]:
            self.fault("wrong answer", "another video than the command line's", {name: answer})
        # The last byte is here before the server has deleted it.
        end = time.monotonic() + 20
        while self.request("GET", f"/api/videos/{told['id']}")[0] != 404:
            if time.monotonic() > end:
                self.fault("left-over", f"{name}: still there after it was fetched", files)
                return
            time.sleep(0.05)

    def rude(self, own):
        """A client that does not keep to the protocol, or takes its time."""
        held = []
        whole = form("rgb.png", seeds.pictures()["rgb.png"], ())
        head = f"POST /api/derain HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {_FORM}\r\n"
        whole = f"{head}Content-Length: {len(whole)}\r\n\r\n".encode() + whole
        while not self.stop.is_set():
            with contextlib.suppress(OSError):
                line = socket.create_connection(("127.0.0.1", self.port), timeout=20)
                held = [*held[-30:], line]
                way = own.randrange(4)
                line.sendall(own.choice(_RAW) if way else whole[: own.randrange(len(whole))])
                if way == 1:
                    line.shutdown(socket.SHUT_WR)  # half closed: an answer may still come
                    line.settimeout(5)
                    line.recv(1000)
                elif way == 2:
                    line.close()
                elif way == 3:
                    for at in range(0, 200, 4):  # a few bytes at a time
                        line.sendall(whole[at : at + 4])
                        if self.stop.wait(0.05):
                            break
                self.count(refused=1)
            self.stop.wait(0.02)

    def watch(self, _):
        """Ask how the server is, and whether that is true."""
        while not self.stop.wait(0.5):
            self.peak = max(self.peak, _tree_megabytes(self.process.pid))
            try:
                status, _, answer = self.request("GET", "/healthz", timeout=20)
                well = status == 200 and json.loads(answer)["status"] == "ok"
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                self.fault("wrong answer", f"/healthz: {type(error).__name__}")
                continue
            if well and time.monotonic() - self.last_good > _SILENCE:
                self.fault(
                    "untrue health", f"no sound picture is answered for {_SILENCE} s, but health is ok"
                )
                self.last_good = time.monotonic()

    def run(self, seconds, roles, results=None, videos=0):
        """Let each role act in a thread of its own, for so long or until there are so many answers."""
        self.stop.clear()
        self.counts.clear()
        self.last_good = began = time.monotonic()
        threads = [
            threading.Thread(
                target=role, args=(random.Random(f"{self.campaign.seed} {number}"),), daemon=True
            )
            for number, role in enumerate(roles)
        ]
        for thread in threads:
            thread.start()
        while time.monotonic() < began + seconds and self.process.poll() is None:
            if results is not None and self.counts["right"] >= results and self.counts["videos"] >= videos:
                break
            time.sleep(0.1)
        took = time.monotonic() - began
        self.stop.set()
        for thread in threads:
            thread.join(90)
        return self.counts["right"] / took


def attack(campaign):
    """A quiet time, a time of attack, and the end; then once more with --isolate."""
    model, folder = seeds.model_file(campaign.fresh("model")), campaign.fresh("right")
    for name in _GOOD:
        (folder / name).write_bytes(seeds.pictures()[name])
    videos = seeds.videos(campaign.fresh("videos")) if find_spec("av") else {}
    names = [*_GOOD, *([_FILM] if videos else [])]
    if videos:
        (folder / _FILM).write_bytes(videos[_FILM])
    watched(unrain(folder, "-o", folder / "out", "--model", model, "--threads", "1"))
    right = {name: (folder / "out" / name.replace(".", "_derained.")).read_bytes() for name in names}
    seconds = min(campaign.stop - time.monotonic(), 3600) / 2
    for words in ([], ["--isolate"]):
        _serve(campaign, model, right, videos, words, seconds)


def _serve(campaign, model, right, videos, more, seconds):
    words = ["--model", model, "--port", "0", "--threads", "1", "--queue", CLIENTS, "--timeout", "30", *more]
    place = campaign.fresh("serve")
    with tempfile.NamedTemporaryFile("r+b") as err:
        process = start(unrain("serve", *words), cwd=place, out=err, err=err, limited=False)
        try:
            while not (found := re.search(r"http://[^/]*:(\d+)/", Path(err.name).read_text())):
                if process.poll() is not None:
                    campaign.fault("crash", f"{Path(err.name).read_text()}\nthe server does not start", {})
                    return
                time.sleep(0.1)
            load = Load(campaign, process, int(found[1]), right, videos)
            few = None if campaign.limit == float("inf") else campaign.limit // 8
            quiet = load.run(seconds / 4, [load.good] * GOOD + [load.watch], few)
            roles = [load.good] * GOOD + [load.bad] * BAD + [load.rude] * RUDE + [load.watch]
            roles += [load.film] * FILMS if videos else []
            if few is not None and videos and not more:
                # A slice is over too soon for videos to come to their turn among the others.
                load.run(seconds / 4, [load.film] * FILMS, 0, 2 * few)
            busy = load.run(seconds * 3 / 4, roles, few)
            campaign.notes.append(
                f"server {' '.join(more)}: {quiet:.1f} good pictures a second in quiet, "
                f"{busy:.1f} under attack; {load.counts['busy']} told to wait; "
                f"{load.counts['videos']} videos; {load.peak:.0f} MB at most"
            )
            _end(campaign, load)
        finally:
            kill(process)
            process.wait()
        log = Path(err.name).read_text("utf-8", "replace")
    if "Traceback" in log:
        campaign.fault("traceback", log[log.rindex("Traceback") :][:3000], {"server.log": log.encode()})
    for path in leftovers(place):
        campaign.fault("left-over", path, {})


def _end(campaign, load):
    """After the attack the server still serves, is small, and stops when it is told to."""
    if load.process.poll() is not None:
        campaign.fault("crash", f"the server ended with {load.process.returncode}", {})
        return
    try:
        status, answer = load.picture("rgb.png", seeds.pictures()["rgb.png"], timeout=90)
    except OSError as error:
        status, answer = type(error).__name__, b""
    if (status, answer) != (200, load.right["rgb.png"]):
        campaign.fault("wrong answer", f"after the attack: {status} to a sound picture", {})
    if load.peak > _MEGABYTES:
        campaign.fault("memory", f"took {load.peak:.0f} MB, more than {_MEGABYTES}", {})
    load.process.send_signal(signal.SIGINT)
    try:
        if code := load.process.wait(30):
            campaign.fault("exit code", f"exit code {code} after Ctrl-C", {})
    except subprocess.TimeoutExpired:
        campaign.fault("hang", "does not stop within 30 s of Ctrl-C", {})


def form(name, data, fields, *, field="picture"):
    """A form with a file and further fields."""
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields
    ]
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
    return b"".join(parts) + head.encode() + data + f"\r\n--{_BOUNDARY}--\r\n".encode()


def _tree_megabytes(pid):
    """Memory of a process and its descendants."""
    pages = 0
    group = os.getpgid(pid)
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if os.getpgid(int(place.name)) == group:
                pages += int((place / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
