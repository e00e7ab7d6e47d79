"""Published figures, from `published.toml` beside this file: each with its source, none measured here."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from unrain.lab.data.suites import Suite

NOT_SAID = "not said"

# What sources call a set that has another name here.
_SETS = {"Test100": "Rain800", "Rain1200": "Test1200"}
_REMARKS = {"Test100": "Test100, 98 of Rain800's 100 pictures"}


@dataclass(frozen=True)
class Source:
    """Where figures are from.

    Attributes:
        number: What stands in brackets behind a method's name, from 1.
        title: Of the paper or repository.
        url: Where it is.
        read: What of it was read.
        channel: What its PSNR and SSIM are of.
        protocol: How they came about.
    """

    number: int
    title: str
    url: str
    read: str
    channel: Literal["Y", "RGB"]
    protocol: str

    def __str__(self) -> str:
        """Say all of it in a line."""
        return (
            f"published, not measured here: {self.title}, {self.read}, {self.url}; {self.channel} channel"
            f"{'s' * (self.channel == 'RGB')}, {self.protocol}"
        )


@dataclass(frozen=True)
class Figure:
    """What a method scores on a set, by its source.

    Attributes:
        method: Its name.
        year: When the method was published.
        set: What the source calls the set.
        psnr: In dB.
        ssim: To three digits.
        trained_on: What the source says of the training data.
        source: Where this is from.
    """

    method: str
    year: int
    set: str
    psnr: float
    ssim: float
    trained_on: str
    source: Source

    @property
    def label(self) -> str:
        """Return the method with the number of its source."""
        return f"{self.method} [{self.source.number}]"

    @property
    def remark(self) -> str:
        """Say of what pictures and channels this is."""
        return f"{self.source.channel}, {_REMARKS.get(self.set, self.set)}, {self.source.protocol}"


def figures_of(suite: Suite) -> list[Figure]:
    """Return the published figures of a suite; none where nothing is published."""
    if suite.published is None or suite.kind != "pairs":
        return []
    return [one for one in figures() if _SETS.get(one.set, one.set) == suite.published.title]


@lru_cache
def figures() -> tuple[Figure, ...]:
    """Read all of them, in the order of the file."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    found = []
    for number, one in enumerate(table["source"], 1):
        source = Source(number, *(one[name] for name in ("title", "url", "read", "channel", "protocol")))
        said = one.get("trained_on", {})
        for method in one["method"]:
            for name, (psnr, ssim) in method["figures"].items():
                trained_on = method.get("trained_on") or said.get(name) or said.get("all", NOT_SAID)
                found.append(Figure(method["name"], method["year"], name, psnr, ssim, trained_on, source))
    return tuple(found)
