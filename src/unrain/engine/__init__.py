"""What runs a network: one small interface, and a library behind it for each kind of processor."""

from unrain.engine.choose import open_engine
from unrain.engine.interface import Engine, Planes

__all__ = ["Engine", "Planes", "open_engine"]
