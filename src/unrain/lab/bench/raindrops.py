"""Rain for photographs of any size: one list of falling drops, drawn as large as the picture asks for.

It is not the rain of training (`unrain.lab.data.rain`): every drop is a line of its own. Drops stand at
random places before a pinhole camera. Their sizes follow Marshall and Palmer ("The distribution of raindrops
with size", 1948), they fall at the terminal velocity of their size (Atlas, Srivastava and Sekhon, "Doppler
radar characteristics of precipitation at vertical incidence", 1973), and a streak is as bright as the share
of the exposure that its drop spends before a point (Garg and Nayar, "Vision and rain", 2007). The light is
added, as in `add_layer`. All of it depends on the photograph's name and a seed, and not on its size.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from unrain.lab.bench.options import Rain

# The long side at which fine rain is the same as rain to scale, in pixels.
REFERENCE = 640

# The field of view's long side is 1 at this distance; lengths below are in metres and seconds.
_FOCAL = 0.9
_NEAR, _FAR = 0.5, 2.5
_EXPOSURE = (1 / 200, 1 / 50)
_RAINFALL = (5.0, 50.0)
_DENSITY = (1400.0, 4000.0)
_SLANT = 22.0
_SPREAD = 2.0
# Chosen with the density: rainy pictures have about 27 dB, as those of Rain100L.
_SKY = 6500.0
_BRIGHTEST = 220.0
# No lens is sharper than a picture of the reference size can show; the near ones are out of focus besides.
_BLUR = 0.45 / REFERENCE
_DEFOCUS = 0.0004
_MARGIN = 0.2
_TAPER = 0.35
_REACH = 3.0
_SAMPLES = 1_000_000


@dataclass(frozen=True)
class Drops:
    """Streaks, one value each; places and lengths in units of which the picture has `unit` pixels.

    Attributes:
        x: Middle, from the left.
        y: Middle, from the top.
        slant: Direction of the fall from the vertical, in radians.
        length: From end to end.
        sigma: Standard deviation of the light across.
        light: Brightest value, in steps of 8 bits.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    slant: NDArray[np.float64]
    length: NDArray[np.float64]
    sigma: NDArray[np.float64]
    light: NDArray[np.float64]

    def part(self, chosen: slice) -> Drops:
        """Return some of them."""
        return Drops(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


def rain_layer(height: int, width: int, rain: Rain, *, name: str, seed: int = 0) -> NDArray[np.uint8]:
    """Draw the rain of a photograph.

    Args:
        height: Of the picture.
        width: Of the picture.
        rain: "scaled": the same drops at every size, as large as the picture; "fine": drops as large as in a
            picture of `REFERENCE` pixels, as many more of them as the picture is larger.
        name: Of the photograph.
        seed: Another number gives another rain.

    Returns:
        H x W uint8, light to be added.
    """
    side = max(height, width)
    extent = 1.0 if rain == "scaled" else side / REFERENCE
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    drops = fall(np.random.default_rng(list(digest)), extent)
    return draw(drops, height, width, side / extent)


def fall(rng: np.random.Generator, extent: float = 1.0) -> Drops:
    """Let it rain over a square.

    Args:
        rng: The source of randomness.
        extent: Side of the square, in long sides of the field of view.
    """
    exposure = np.exp(rng.uniform(*np.log(_EXPOSURE)))
    rainfall = rng.uniform(*_RAINFALL)
    slant = np.radians(rng.uniform(-_SLANT, _SLANT))
    count = round(rng.uniform(*_DENSITY) * (extent + 2 * _MARGIN) ** 2)
    # As many drops in one cubic metre as in the next.
    distance = np.cbrt(rng.uniform(_NEAR**3, _FAR**3, count))
    # N(D) ~ exp(-4.1 R^-0.21 D), R in mm/h and D in mm; drizzle below 0.8 mm is not seen.
    diameter = np.minimum(0.8 + rng.exponential(rainfall**0.21 / 4.1, count), 5.0)
    speed = 9.65 - 10.3 * np.exp(-0.6 * diameter)
    width = diameter / 1000 * _FOCAL / distance
    # A drop's own light has this standard deviation across it.
    own = width / 4
    sigma = np.sqrt(own**2 + _BLUR**2 + (_DEFOCUS / distance) ** 2)
    light = np.minimum(_SKY * diameter / 1000 / (speed * exposure), _BRIGHTEST)
    return Drops(
        x=rng.uniform(-_MARGIN, extent + _MARGIN, count),
        y=rng.uniform(-_MARGIN, extent + _MARGIN, count),
        slant=slant + np.radians(rng.normal(0, _SPREAD, count)),
        length=speed * exposure * _FOCAL / distance + width,
        sigma=sigma,
        # What the lens spreads gets darker.
        light=light * own / sigma,
    )


def draw(drops: Drops, height: int, width: int, unit: float) -> NDArray[np.uint8]:
    """Draw streaks: Gaussian across, tapered at the ends, the light of each row exact between pixels.

    Args:
        drops: Any number.
        height: Of the picture.
        width: Of the picture.
        unit: Pixels in a unit of the drops.

    Returns:
        H x W uint8.
    """
    layer = np.zeros(height * width, np.float32)
    for some in _chunks(drops, unit):
        # One entry for each row of each streak.
        down = np.cos(some.slant)
        half = some.length * unit / 2 * down
        top = np.clip(np.floor(some.y * unit - half), 0, height).astype(np.intp)
        rows = np.clip(np.ceil(some.y * unit + half), 0, height).astype(np.intp) - top
        one = np.repeat(np.arange(len(rows)), rows)
        row = np.arange(len(one)) - np.repeat(np.cumsum(rows) - rows, rows) + top[one]
        below = row + 0.5 - some.y[one] * unit
        ends = np.clip((1 - np.abs(below) / half[one]) / _TAPER, 0, 1)
        middle = some.x[one] * unit + below * np.tan(some.slant[one])
        sigma = _across(some, unit)[one]
        mass = (some.light * np.sqrt(np.pi / 2) * some.sigma * unit / down)[one]
        mass *= ends * ends * (3 - 2 * ends)
        # One entry for each pixel of these.
        reach = np.ceil(_REACH * sigma).astype(np.intp)
        pixels = 2 * reach + 1
        line = np.repeat(np.arange(len(one)), pixels)
        column = np.arange(len(line)) - np.repeat(np.cumsum(pixels) - pixels, pixels)
        column += (np.floor(middle).astype(np.intp) - reach)[line]
        inside = (column >= 0) & (column < width)
        line, column = line[inside], column[inside]
        left = ((column - middle[line]) / (np.sqrt(2) * sigma[line])).astype(np.float32)
        right = ((column + 1 - middle[line]) / (np.sqrt(2) * sigma[line])).astype(np.float32)
        np.add.at(
            layer, row[line] * width + column, (mass[line] * (erf(right) - erf(left))).astype(np.float32)
        )
    return np.minimum(np.rint(layer), 255).astype(np.uint8).reshape(height, width)


def _across(drops: Drops, unit: float) -> NDArray[np.float64]:
    """Return the standard deviation along a row, in pixels; a slanting line crosses a row on its way."""
    return np.sqrt((drops.sigma * unit / np.cos(drops.slant)) ** 2 + np.tan(drops.slant) ** 2 / 12)


def _chunks(drops: Drops, unit: float) -> Iterator[Drops]:
    """Yield the drops in parts that take a bounded number of pixels each, or are one drop."""
    pixels = (drops.length * unit + 2) * (2 * _REACH * _across(drops, unit) + 3)
    part = np.cumsum(pixels) // _SAMPLES
    edges = [0, *(np.flatnonzero(np.diff(part)) + 1), len(part)]
    for start, stop in itertools.pairwise(edges):
        yield drops.part(slice(start, stop))
