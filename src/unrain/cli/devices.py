"""`unrain devices`: which processors there are, and what is missing for the others."""

import json as jsonlib
from dataclasses import asdict, dataclass

from unrain.cli.output import print_line
from unrain.devices import ABOUT, AUTO, INSTALL, Processor


@dataclass(frozen=True)
class Found:
    """A kind of device in this installation.

    Attributes:
        device: As `--device` calls it.
        about: What it is.
        installed: Whether its library is installed.
        names: Which ones of that kind the library finds, where it tells.
        problem: Why it cannot be used; empty if it works.
        seconds: What a picture of 256x256 takes; None if it is not for `auto` or does not work.
        install: The line that installs what it needs.
    """

    device: str
    about: str
    installed: bool
    names: tuple[str, ...]
    problem: str
    seconds: float | None
    install: str


def devices(*, json: bool = False) -> None:
    """List the processors that a network can run on here, and what is missing for the others.

    What is installed is tried on a small picture, and its result compared with the CPU's.

    Args:
        json: Print the list as JSON.
    """
    found = _look()
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
            time = "" if one.seconds is None else f": {one.seconds * 1000:.0f} ms for 256x256"
            print_line(f"  {one.device:<9} {one.about}{names}{time}")
            if one.problem:
                remedy = "" if one.problem.startswith("only on") else f": {one.install}"
                print_line(f"  {'':<9} {one.problem}{remedy}")
    print_line("--device auto takes the fastest of those that are here and work.")


def _look() -> list[Found]:
    from unrain.engine.choose import missing, names, tested

    missed = {kind: missing(kind) for kind in (*AUTO, "torch")}
    # Anew: who looks here may have mended what a run left out.
    results = tested(Processor(), alone=True, anew=True)
    found = []
    for kind, why in missed.items():
        result = results.get(kind)
        seconds = result if isinstance(result, float) else None
        problem = why or (result if isinstance(result, str) else "")
        its_names = () if problem else names(kind)
        found.append(Found(kind, ABOUT[kind], not why, its_names, problem, seconds, INSTALL[kind]))
    return found
