"""How large a picture may be."""

from unrain.errors import UnrainError

MAX_PIXELS = 400_000_000


class TooManyPixelsError(UnrainError):
    """The picture is larger than allowed, as its header says; nothing of it was decoded."""


def check_size(name: str, size: tuple[int, int], max_pixels: int, count: int = 1) -> None:
    """Refuse what is too large, before its pixels are decoded.

    Args:
        name: How messages call the file.
        size: Width and height in pixels.
        max_pixels: The limit.
        count: How many pictures or frames of this size the file holds.

    Raises:
        TooManyPixelsError: It is.
    """
    width, height = size
    if width * height * count > max_pixels:
        several = f"{count} of " if count > 1 else ""
        raise TooManyPixelsError(too_large(name, f"{several}{width} x {height}, ", max_pixels))


def too_large(name: str, size: str, max_pixels: int) -> str:
    """Return the message for a file that is too large."""
    limit = f"{max_pixels:,} pixels"
    return f"{name}: {size}more than the limit of {limit}, raise it with --max-pixels if you trust the file"
