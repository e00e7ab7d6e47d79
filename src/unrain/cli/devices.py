"""`unrain devices`: which processors there are, and what is missing for the others."""

import json as jsonlib
from dataclasses import asdict, dataclass

from unrain.cli.output import print_line
from unrain.devices import ABOUT, AUTO, INSTALL


@dataclass(frozen=True)
class Found:
    """A kind of device in this installation.

    Attributes:
        device: As `--device` calls it.
        about: What it is.
        installed: Whether its library is installed.
        names: Which ones of that kind the library finds, where it tells.
        missing: Why it cannot be had; empty if it may be.
        install: The line that installs what it needs.
    """

    device: str
    about: str
    installed: bool
    names: tuple[str, ...]
    missing: str
    install: str


def devices(*, json: bool = False) -> None:
    """List the processors that a network can run on here, and what is missing for the others.

    Args:
        json: Print the list as JSON.
    """
    found = [_look(kind) for kind in (*AUTO, "torch")]
    if json:
        for line in jsonlib.dumps([asdict(one) for one in found], indent=2).split("\n"):
            print_line(line)
        return
    for title, there in (("Here", True), ("Not here", False)):
        rows = [one for one in found if one.installed is there]
        if rows:
            print_line(title)
        for one in rows:
            names = f" ({', '.join(one.names)})" if one.names else ""
            print_line(f"  {one.device:<9} {one.about}{names}")
            if not there:
                remedy = "" if one.missing.startswith("only on") else f": {one.install}"
                print_line(f"  {'':<9} {one.missing}{remedy}")
    print_line("--device auto takes the fastest of those that are here and work.")


def _look(kind: str) -> Found:
    from unrain.engine.choose import missing, names

    why = missing(kind)
    return Found(kind, ABOUT[kind], not why, () if why else names(kind), why, INSTALL[kind])
