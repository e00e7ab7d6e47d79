"""What runs a network: one small interface, and a library behind it for each kind of processor."""

from unrain.engine.choose import open_engine
from unrain.engine.interface import Engine, Planes
from unrain.engine.network import NetworkEngine

__all__ = ["Engine", "NetworkEngine", "Planes", "open_engine"]
