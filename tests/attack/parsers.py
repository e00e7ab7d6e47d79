"""Fuzzing of our own parsers: EXIF, chunks of PNG and RIFF, 16-bit TIFF, cards, recipes.

Each target is a test of Hypothesis, which searches for inputs that run as many of our lines as it can.
"""

import contextlib
import re
import struct
import sys
import tempfile
from pathlib import Path

from attack import seeds
from attack.mutate import mended
from attack.process import faults, watched
from unrain import image, zoo
from unrain.engine.onnx_runtime import OnnxRuntimeEngine
from unrain.errors import UnrainError
from unrain.image import metadata

_OURS = str(Path(image.__file__).parents[1])


def _edited(data, edits):
    """Put numbers of bytes in the place of others, or cut."""
    out = bytearray(data)
    for at, new in edits:
        at %= len(out) + 1
        out[at : at + len(new)] = new
    return bytes(out)


def exif(edits):
    """A patched block keeps its length, has no other orientation left, and a second patch changes nothing."""
    block = _edited(seeds.exif()[6:], edits)
    once, orientation = metadata.upright_exif(block)
    assert len(once) in (0, len(block)) and 0 <= orientation <= 8
    twice, again = metadata.upright_exif(once)
    assert twice == once and again in (0, 1)
    assert len(metadata.without_thumbnail(block)) in (0, len(block))


def png(edits):
    """Chunks before the pixels, with right checksums; what is read can be written and read again."""
    data = seeds.pictures()["rgb.png"]
    _round_trip(mended(_edited(data[:-40], edits) + data[-40:]), "PNG")


def riff(edits):
    """A WebP."""
    _round_trip(_edited(seeds.pictures()["lossless.webp"], edits), "PNG")


def tiff(edits):
    """A TIFF with 16 bits a channel."""
    _round_trip(_edited(seeds.pictures()["deep-alpha.tif"], edits), "TIFF")


def jpeg(edits):
    """The segments of a JPEG."""
    data = seeds.pictures()["rgb.jpg"]
    start = data.index(b"\xff\xdb")
    _round_trip(_edited(data[:start], edits) + data[start:], "PNG")


def card(edits):
    """A card is read or refused in a line."""
    _model(lambda folder: (folder / "tiny.json").write_bytes(_edited(seeds.model()[1], edits)))


def recipe(edits):
    """A recipe is read or refused in a line."""
    from toys_training import TOY
    from unrain.lab.training.recipe import read_recipe

    with tempfile.TemporaryDirectory() as folder, _one_line():
        path = Path(folder) / "toy.toml"
        path.write_bytes(_edited(TOY.format(more="").encode(), edits))
        read_recipe(path)


TARGETS = {one.__name__: one for one in (exif, png, riff, tiff, jpeg, card, recipe)}


def _round_trip(data, kind):
    """Read a picture, write it without loss, read it again: the same."""
    with _one_line():
        read = image.decode(data, "fuzzed", max_pixels=100_000)
        again = image.decode(image.encode(read, kind)[0], "again")
        assert (again.pixels == read.pixels).all()


def _model(change):
    with tempfile.TemporaryDirectory() as folder, _one_line():
        path = seeds.model_file(Path(folder))
        change(Path(folder))
        OnnxRuntimeEngine(zoo.find(path), threads=1)


@contextlib.contextmanager
def _one_line():
    """A refusal is one line."""
    try:
        yield
    except UnrainError as error:
        assert len(str(error).splitlines()) == 1, "a refusal of several lines"


def _lines(action, *arguments):
    """How many of unrain's own lines an action runs."""
    seen = set()

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        seen.add((frame.f_code, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action(*arguments)
    finally:
        sys.settrace(before)
    return len(seen)


def search(name, *, examples, seed):
    """The target as a test of Hypothesis."""
    from hypothesis import HealthCheck, given, settings, strategies, target
    from hypothesis import seed as seeded

    numbers = [struct.pack(order + "I", n) for n in (0, 1, 8, 0xFFFF, 0xFFFFFFFF, 1 << 31) for order in "<>"]
    new = strategies.binary(max_size=8) | strategies.sampled_from(numbers)
    edits = strategies.lists(strategies.tuples(strategies.integers(0, 20_000), new), max_size=8)

    @seeded(seed)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(edits)
    def fuzz(found):
        target(float(_lines(TARGETS[name], found)), label=name)

    return fuzz


def attack(campaign):
    """Each target in a process of its own, by turns, with another seed in each turn."""
    turn = 0
    while campaign.more():
        for name in TARGETS:
            if not campaign.more():
                break
            examples = campaign.room(400 if campaign.limit > 1000 else 50)
            words = [sys.executable, "-m", "attack.parsers", name, str(examples), str(campaign.seed + turn)]
            ran = watched(words, cwd=campaign.fresh("fuzz"), patience=120 + examples)
            done = int((re.findall(r"^done (\d+)", ran.out, re.MULTILINE) or ["0"])[-1])
            campaign.count(cases=examples, results=done)
            for kind, detail in faults(ran, megabytes=1500, cpu=120 + examples, codes={0}):
                campaign.fault(kind, f"{name}\n{detail}", {"stderr.txt": ran.err.encode()})
        turn += 1


def main(name, examples, seed):
    """Fuzz one target with so many inputs."""
    search(name, examples=int(examples), seed=int(seed))()
    sys.stdout.write(f"done {examples}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
