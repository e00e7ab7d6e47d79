"""Make docs/limits.jpg: what the default model does well and what it does not, failures beside successes."""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw, ImageFilter

import unrain
from unrain.lab.data.rain import RainMaker, StreakRain

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "limits.jpg"
WIDTH, HEIGHT, GAP = 300, 180, 6
DENSE = StreakRain(
    depths=(14, 14), direction=(8, 14), length=(20, 60), width=(0.8, 2.0), intensity=(120, 220)
)


def scene(photo: str, shape: tuple[int, int] = (400, 660)) -> np.ndarray:
    """Return the middle of a free photograph, enlarged if it is too small."""
    picture = Image.fromarray(np.asarray(getattr(skimage.data, photo)()))
    scale = max(shape[0] / picture.height, shape[1] / picture.width)
    size = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (picture.width - shape[1]) // 2, (picture.height - shape[0]) // 2
    return np.asarray(picture.crop((left, top, left + shape[1], top + shape[0])))


def lens_drops(clean: np.ndarray) -> np.ndarray:
    """Draw drops on the lens: each shows the scene small, blurred and upside down."""
    random = np.random.default_rng(2)
    picture = Image.fromarray(clean)
    turned = picture.rotate(180).filter(ImageFilter.GaussianBlur(2))
    for _ in range(26):
        radius = int(random.integers(8, 30))
        x, y = int(random.integers(0, picture.width)), int(random.integers(0, picture.height))
        mask = Image.new("L", (2 * radius, 2 * radius))
        ImageDraw.Draw(mask).ellipse((0, 0, 2 * radius - 1, 2 * radius - 1), fill=235)
        drop = turned.resize((2 * radius, 2 * radius)).point(lambda value: min(255, value + 25))
        picture.paste(drop, (x - radius, y - radius), mask.filter(ImageFilter.GaussianBlur(1.5)))
    return np.asarray(picture)


def veil(clean: np.ndarray) -> np.ndarray:
    """Cover the picture with grey light, more towards the top, where it is farther away."""
    share = np.linspace(0.65, 0.3, len(clean))[:, None, None]
    return np.rint(clean * (1 - share) + 190 * share).astype(np.uint8)


def grass() -> np.ndarray:
    """Draw dry, pale blades before a meadow: as thin, bright and slanted as streaks."""
    random = np.random.default_rng(3)
    meadow = Image.fromarray(random.integers(60, 110, (50, 82, 3), np.uint8) // np.uint8([2, 1, 2]))
    picture = meadow.resize((660, 400), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for _ in range(420):
        x, y = random.integers(0, 660), random.integers(120, 400)
        lean, length = random.normal(8, 4), random.integers(25, 70)
        light = int(random.integers(170, 235))
        draw.line((x, y, x + lean, y - length), fill=(light, light - 8, light - 45), width=2)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(0.8)))


def main() -> None:
    """Derain each scene, and write the rows below each other."""
    coffee = scene("coffee")
    rows = [
        np.asarray(Image.open(HERE / "launch.jpg")),
        np.asarray(Image.open(HERE / "cat.jpg")),
        RainMaker(from_scratch=DENSE)(coffee, [], np.random.default_rng(5)),
        lens_drops(coffee),
        veil(coffee),
        grass(),
        coffee,
    ]
    model = unrain.Derainer()
    sheet = Image.new("RGB", (3 * WIDTH + 2 * GAP, len(rows) * (HEIGHT + GAP) - GAP), "white")
    for number, rainy in enumerate(rows):
        result = model.derain(rainy)
        taken = np.clip(result.rain_layer.astype(int) * 4, 0, 255).astype(np.uint8)
        for column, picture in enumerate((rainy, result.image, taken)):
            fitted = Image.fromarray(picture)
            share = max(WIDTH / fitted.width, HEIGHT / fitted.height)
            size = (round(fitted.width * share), round(fitted.height * share))
            fitted = fitted.resize(size, Image.Resampling.LANCZOS).crop((0, 0, WIDTH, HEIGHT))
            sheet.paste(fitted, (column * (WIDTH + GAP), number * (HEIGHT + GAP)))
    sheet.save(OUT, quality=80, optimize=True)


if __name__ == "__main__":
    main()
