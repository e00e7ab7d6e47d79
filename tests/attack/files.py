"""Damaged pictures, bombs, strange names and things that are no files, in folders that unrain derains."""

import hashlib
import io
import os
import re
import socket
from pathlib import Path

from PIL import Image

from attack import bombs, seeds
from attack.mutate import mutant
from attack.process import faults, leftovers, unrain, watched
from unrain import image
from unrain.image import result_suffix

PIXELS = 4_000_000
_BATCH = 60
_OPTIONS = ([], [], ["--rain-layer", "--compare"], ["--quality", "50"], ["--strength", "0.5", "--tile", "40"])
# Pillow cannot say what their sources hold.
_NOT_PILLOWS = ("phone", "deep.heic", "deep_derained.jpg", "camera")
_NAMES = (
    "a\x1b[31mred.png",
    "a\rgone.png",
    "line\nunrain: error: forged.png: all is well.png",
    "\u202egnp.exe.png",
    "\u2066hidden\u2069.png",
    "\x9b2J.png",
    "bytes\udcff\udcfe.png",
    "a" * 251 + ".png",
    "[a].png",
    "-q.png",
    "CON.png",
    "snow\u2603.png",
    " .png",
    "a_derained_derained.png",
)


def attack(campaign):
    """Batches of mutants; after each one bomb, and now and then names and special files."""
    model = seeds.model_file(campaign.fresh("model"))
    sound, names = seeds.pictures() | seeds.other_pictures(), list(bombs.BOMBS)
    campaign.random.shuffle(names)
    batches = 0
    while campaign.more():
        cases = {}
        for number in range(campaign.room(_BATCH)):
            name = campaign.random.choice(list(sound))
            data = mutant(campaign.random, sound[name], list(sound.values()))
            cases[f"m{number:03}-{name}"] = data
        options = campaign.random.choice(_OPTIONS)
        folder_run(campaign, model, cases, ["--max-pixels", PIXELS, *options], picture_problem)
        if campaign.more():
            name = names[batches % len(names)]
            case = {name: bombs.bomb(name)}
            folder_run(campaign, model, case, ["--max-pixels", PIXELS], picture_problem, cpu=20)
        if batches % 4 == 0 and campaign.more():
            _strange(campaign, model)
        batches += 1


def folder_run(campaign, model, cases, options, problem, *, cpu=None, megabytes=800.0):
    """Derain a folder of cases, judge the run and each result, and find who is to blame for a fault.

    Args:
        campaign: What counts.
        model: An ONNX file.
        cases: The content of each file by its name.
        options: Further words of the command.
        problem: Says what is wrong with a result, given its path and the source; None if nothing.
        cpu: Seconds of processor time that are too much.
        megabytes: Memory that is too much.
    """
    limits = {"cpu": cpu or 20 + len(cases), "megabytes": megabytes, "codes": {0, 1}}
    ran, folder = _derained(campaign, model, cases, options)
    fates = {name: _fate(ran.err, folder, name) for name in cases}
    campaign.count(
        cases=len(cases),
        refused=sum(fate == "refused" for fate in fates.values()),
        results=sum(fate == "result" for fate in fates.values()),
    )
    for kind, detail in faults(ran, **limits):

        def same(some, kind=kind):
            found, _ = _derained(campaign, model, some, options)
            return any(kind == other for other, _ in faults(found, **limits))

        campaign.fault(kind, detail, cases, same)
    if ran.code is None or ran.code < 0:
        return
    failed = sum(fate != "result" for fate in fates.values())
    if (ran.code == 0) != (failed == 0):
        campaign.fault("exit code", f"{failed} of {len(cases)} failed, but exit code {ran.code}", cases)
    for name, fate in fates.items():
        if fate == "lost":
            campaign.fault(
                "false success", f"{name}: no result\n{ran.err}\nno word of it", {name: cases[name]}
            )
        for result in _results(folder, name) if fate == "result" else ():
            if wrong := problem(result, cases[name]):
                campaign.fault("false success", f"{result.name}\n{wrong}", {name: cases[name]})
    for name, data in cases.items():
        if (folder / "in" / name).read_bytes() != data:
            campaign.fault("input touched", name, {name: data})
    for path in leftovers(folder):
        campaign.fault("left-over", path, cases)


def _derained(campaign, model, cases, options):
    folder = campaign.fresh()
    (folder / "in").mkdir()
    for name, data in cases.items():
        (folder / "in" / name).write_bytes(data)
    command = unrain(folder / "in", "-o", folder / "out", "--model", model, "--threads", "1", *options)
    return watched(command), folder


def _fate(err, folder, name):
    """What the run says of an input: result, refused, or lost if nothing."""
    path = re.escape(str(folder / "in" / name))
    if re.search(f"^unrain: error: .*{path}", err, re.MULTILINE):
        return "refused"
    # What cannot be written is called by the result's name.
    out = re.escape(str(folder / "out" / Path(name).stem))
    if re.search(f"^unrain: error: {out}_", err, re.MULTILINE):
        return "refused"
    return "result" if re.search(f"^{path} -> ", err, re.MULTILINE) else "lost"


def _results(folder, name):
    stem, suffix = Path(name).stem, result_suffix(Path(name))
    return [folder / "out" / f"{stem}_derained{suffix}", *(folder / "out").glob(f"{stem}_[rc]*")]


def picture_problem(path, source):
    """Compare a result with what Pillow says of the source's header."""
    try:
        if path.suffix == ".jxl" or path.name.partition("-")[2].startswith(_NOT_PILLOWS):
            return None if image.read(path, pages=True).pixels.size else "empty"
        with Image.open(path) as result:
            result.load()
        with Image.open(io.BytesIO(source)) as header:
            size, kind = sorted(header.size), header.format
    except Exception as error:
        return f"cannot be opened ({error!r})"
    if "_compare" not in path.stem and sorted(result.size) != size:
        return f"is {result.size}, its source {size}"
    # The toys are noise, which nothing compresses: half of the bytes are half of the pixels.
    original = seeds.pictures().get(path.name.partition("-")[2].replace("_derained", ""), b"")
    if kind in ("PNG", "BMP") and original.startswith(source) and len(source) < len(original) / 2:
        return f"made of {len(source)} of {len(original)} bytes"
    return None


def _strange(campaign, model):
    """Names that lie and things that are no regular files, beside one sound picture."""
    folder = campaign.fresh("strange")
    place, sound = folder / "in", seeds.pictures()["rgb.png"]
    place.mkdir()
    for name in _NAMES:
        (place / name).write_bytes(sound)
    os.mkfifo(place / "fifo.jpg")
    os.mkfifo(place / "fifo.mp4")
    (place / "folder.png").mkdir()
    (place / "sound.png").write_bytes(sound)
    for target in ("/dev/zero", "/dev/urandom", "/dev/full", "/dev/tty", "nowhere", "loop.png"):
        (place / Path(target).with_suffix(".png").name).symlink_to(target)
    (place / "linked.png").symlink_to("sound.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(place / "socket.png"))
    before = _state(place)
    for words in (["--model", model], ["--model", model, "--dry-run"], ["--model", place / "fifo.jpg"]):
        ran = watched(unrain(place, "-o", folder / "out", *words), patience=45)
        campaign.count(cases=1, refused=int(ran.code == 1), results=int(ran.code == 0))
        for kind, detail in faults(ran):
            campaign.fault(kind, f"strange files {words[2:]}\n{detail}", {"stderr.txt": ran.err.encode()})
        if re.search("^unrain: error: forged", ran.err, re.MULTILINE):
            campaign.fault("control character", "a forged error line", {"stderr.txt": ran.err.encode()})
        if _state(place) != before:
            campaign.fault("input touched", "strange files changed", {})
    told = re.search(r"(\d+) derained, \d+ skipped, \d+ failed", ran.err)
    made = len(list((folder / "out").iterdir())) if (folder / "out").exists() else 0
    if told and int(told[1]) != made:
        campaign.fault("false success", f"{told[0]}, but {made} results", {})


def _state(folder):
    """What is in a folder: names, kinds, content."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file() and not path.is_symlink()
        else path.lstat().st_mode
        for path in folder.iterdir()
    }
