"""Results for which there is no room, no right and no folder: what has its final name is whole."""

import contextlib
import os
import shutil
import subprocess
import time

from attack import seeds
from attack.process import faults, leftovers, unrain, watched

_SENTINEL = b"somebody else's"


def attack(campaign):
    """One way to lose the disk after the other, at random moments."""
    model = seeds.model_file(campaign.fresh("model"))
    source = campaign.fresh("source")
    sound = seeds.pictures()
    for number, name in enumerate(["rgb.png", "deep.tif", "rgb.jpg", "lossless.webp", "rgb.bmp", "deep.png"]):
        (source / f"{number}-{name}").write_bytes(sound[name])
    (source / "9.mp4").write_bytes(seeds.videos(campaign.fresh("video"))["sound.mp4"])
    given = {path.name: path.read_bytes() for path in source.iterdir()}
    ways = [_short_file, _full_disk, _vanishing, _becomes_a_file, _taken, _full_stdout, _read_only]
    right = campaign.fresh("right")
    watched(unrain(source, "-o", right, "--model", model, "--threads", "1", "-q"))
    whole = {path.name: path.read_bytes() for path in right.iterdir()}
    if len(whole) != len(given):
        campaign.fault("false success", "an undisturbed run has not every result", {})
    number = 0
    while campaign.more():
        way = ways[number % len(ways)]
        number += 1
        folder = campaign.fresh("disk")
        ran = way(campaign, [source, "--model", model, "--threads", "1"], folder)
        if ran is None:
            campaign.notes.append(f"disk: {way.__name__[1:]} cannot be tried here")
            ways.remove(way)
            continue
        campaign.count(cases=1, refused=int(ran.code == 1), results=int(ran.code == 0))
        for kind, detail in faults(ran, codes={0, 1}):
            campaign.fault(kind, f"{way.__name__}\n{detail}", {})
        made = {path.name: path.read_bytes() for path in folder.rglob("*_derained*") if path.is_file()}
        for name, data in made.items():
            if data not in (whole[name], _SENTINEL):
                campaign.fault("half file", f"{way.__name__}: {name}", {name: data})
        if ran.code == 0 and way in (_short_file, _full_disk, _read_only) and len(made) < len(whole):
            campaign.fault("false success", f"{way.__name__}: {len(made)} results\n{ran.err}", {})
        # What was begun goes along with a folder that somebody renames.
        for path in () if way is _becomes_a_file else leftovers(folder):
            campaign.fault("left-over", f"{way.__name__}: {path}", {})
        if {path.name: path.read_bytes() for path in source.iterdir()} != given:
            campaign.fault("input touched", way.__name__, {})
        subprocess.run(["umount", "-q", str(folder)], check=False, capture_output=True)


def _short_file(campaign, words, folder):
    """No file may be longer than so many bytes; enough for what is said, which goes into a file as well."""
    return watched(unrain(*words, "-o", folder), file_size=campaign.random.randrange(1500, 6000))


def _full_disk(campaign, words, folder):
    """A file system of a few pages."""
    size = 4096 * campaign.random.randrange(2, 9)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, check=False, capture_output=True).returncode:
        return None
    return watched(unrain(*words, "-o", folder))


def _read_only(campaign, words, folder):
    """A folder in which nothing may be made."""
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):  # root may do anything, so a file system is made that nobody may
        command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            return None
    return watched(unrain(*words, "-o", folder))


def _full_stdout(campaign, words, folder):
    """Standard output is full."""
    source = next(path for path in sorted(words[0].iterdir()))
    command = unrain(source, *words[1:], "-o", "-")
    return watched(["sh", "-c", 'exec "$@" > /dev/full', "sh", *command])


def _when(campaign, action):
    """What to do while a run goes on: the action, once, at a random moment after the first result."""
    wait, since = campaign.random.random() * 0.2, []

    def meanwhile(folder):
        with contextlib.suppress(FileNotFoundError):
            if not since and any(folder.glob("*_derained*")):
                since.append(time.monotonic())
        if since and since[0] and time.monotonic() > since[0] + wait:
            since[0] = 0
            action()

    return meanwhile


def _vanishing(campaign, words, folder):
    """The folder goes away."""
    out = folder / "out"
    act = _when(campaign, lambda: shutil.rmtree(out, ignore_errors=True))
    return watched(unrain(*words, "-o", out), meanwhile=lambda _: act(out))


def _becomes_a_file(campaign, words, folder):
    """The folder goes away and a file takes its name."""
    out = folder / "out"

    def swap():
        out.rename(folder / "gone")
        out.write_bytes(_SENTINEL)

    act = _when(campaign, swap)
    return watched(unrain(*words, "-o", out), meanwhile=lambda _: act(out))


def _taken(campaign, words, folder):
    """Somebody else takes the names of the results that are not there yet."""
    out, names = folder / "out", [path.name for path in words[0].iterdir()]
    theirs = []

    def take():
        for name in names:
            stem, _, suffix = name.rpartition(".")
            with contextlib.suppress(FileExistsError), (out / f"{stem}_derained.{suffix}").open("xb") as file:
                file.write(_SENTINEL)
                theirs.append(out / f"{stem}_derained.{suffix}")

    act = _when(campaign, take)
    ran = watched(unrain(*words, "-o", out), meanwhile=lambda _: act(out))
    for path in theirs:
        if path.read_bytes() != _SENTINEL:
            campaign.fault("input touched", f"{path.name}: replaced without --overwrite", {})
    return ran
