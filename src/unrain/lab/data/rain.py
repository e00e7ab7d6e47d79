"""Rain for clean photographs: the field's additive layer model, from given layers or drawn from scratch.

A rain layer is a grey picture of light to be added: rainy = min(clean + layer, 255) in 8 bit, which is
exactly how Rain100L and Rain100H were made (Yang et al., CVPR 2017). Layers come from pictures of rain
(`LayerRain`) or are drawn (`StreakRain`: noise dots, motion blur, several depths). Drops that cover what is
behind them, sharpened streaks, veil and JPEG are what real rain and a camera add besides.

Everything takes a `numpy.random.Generator` and is reproducible from its seed; pictures are uint8 in and out.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

RGB8 = NDArray[np.uint8]


def add_layer(clean: RGB8, layer: NDArray[np.uint8]) -> RGB8:
    """Add a grey rain layer: min(clean + layer, 255), the exact Rain100 model.

    Shape:
        clean: H x W x 3 uint8. layer: H x W uint8.
    """
    rainy: RGB8 = np.minimum(clean.astype(np.uint16) + layer[..., None], 255).astype(np.uint8)
    return rainy


@dataclass(frozen=True)
class Effect:
    """What separates the two sides of a pair, so that it can be put on another picture.

    Makers of sets do more than add streaks. In Rain100L the rain is added and as strong everywhere; in most
    pairs of Rain800 it is screened, which leaves less of it on bright ground, and often the contrast is
    another one.

    Attributes:
        tone: By how much each level of each channel is usually changed, rain or not: 3 x 256.
        fading: k in [0, 1]: the rain is proportional to 1 - k clean / 255; 0 for added, 1 for screened rain.
    """

    tone: NDArray[np.float32]
    fading: float

    @classmethod
    def of(cls, rainy: RGB8, clean: RGB8) -> Effect:
        """Estimate the effect from a whole pair.

        Shape:
            rainy, clean: H x W x 3 uint8.

        Returns:
            As tone the medians of rainy - clean in steps of brightness; as fading what a line through the
            strong values of the rest (95 of 100 are below) has, 0 where there are too few of these.
        """
        change = rainy.astype(np.float32) - clean
        tone = np.stack([_medians(clean[..., channel], change[..., channel]) for channel in range(3)])
        still = cls(tone, 0.0)
        ground, rain = clean.mean(axis=2, dtype=np.float32), still._rain(rainy, clean)
        steps = []
        for low in range(0, 224, 32):
            here = (ground >= low) & (ground < low + 32)
            if here.mean() < 0.02:
                continue
            strong = np.percentile(rain[here], 95)
            # What is brighter than white is not seen.
            if low + 32 + strong < 250:
                steps.append((low + 16, strong, np.sqrt(here.sum())))
        if len(steps) < 2:
            return still
        at, strongest, sure = np.array(steps).T
        slope, on_black = np.polyfit(at, strongest, 1, w=sure)
        return cls(tone, float(np.clip(-slope * 255 / on_black, 0, 1)) if on_black > 0 else 0.0)

    def onto(self, ground: RGB8, rainy: RGB8, clean: RGB8) -> RGB8:
        """Put the effect of a pair, or of the same crop of both its sides, on another clean picture.

        Shape:
            ground, rainy, clean: H x W x 3 uint8.

        Returns:
            ground + tone + rain f / g, where g = 1 - fading clean / 255, f the same of the ground, rounded
            and clipped. The quotient is damped where the pair is so bright that hardly any rain is left in
            it.
        """
        here, there = (1 - np.float32(self.fading / 255) * side.mean(axis=2) for side in (clean, ground))
        least = np.float32(0.1 * self.fading) ** 2
        rain = self._rain(rainy, clean) * (there * here * (1 + least) / (here**2 + least))
        changed = ground + self._tone_of(ground) + rain[..., None]
        result: RGB8 = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
        return result

    def _tone_of(self, picture: RGB8) -> NDArray[np.float32]:
        return np.stack([self.tone[i][picture[..., i]] for i in range(3)], axis=-1)

    def _rain(self, rainy: RGB8, clean: RGB8) -> NDArray[np.float32]:
        """Return what is neither the clean picture nor the tone, as light without colour."""
        rain: NDArray[np.float32] = (rainy - clean.astype(np.float32) - self._tone_of(clean)).mean(axis=2)
        return rain


def _medians(level: NDArray[np.uint8], change: NDArray[np.float32], steps: int = 9) -> NDArray[np.float32]:
    """Return the change of each of 256 levels: medians around evenly spaced ones, lines between."""
    half = 255 / (steps - 1) / 2
    found = []
    for at in np.linspace(0, 255, steps):
        here = np.abs(level - at) <= half
        if here.mean() >= 0.005:
            found.append((at, np.median(change[here])))
    curve: NDArray[np.float32] = np.interp(np.arange(256), *np.array(found).T).astype(np.float32)
    return curve


@dataclass(frozen=True)
class LayerRain:
    """Rain from given layers: sums of flipped, turned, scaled and re-weighted crops.

    Attributes:
        count: Least and most layers in one picture.
        angle: Largest turn in degrees, either way.
        scale: Least and most magnification.
        intensity: Least and most factor on the layer's light.
        flip: Whether left and right may be exchanged.
        sharp: Whether crops are resampled by cubic interpolation. Linear interpolation takes half of the
            finest detail off, so that streaks get wider and dimmer than those of the layers.
        whole: Share of crops that are not turned, scaled or moved by parts of a pixel, and so lose nothing.
    """

    count: tuple[int, int] = (1, 1)
    angle: float = 10.0
    scale: tuple[float, float] = (0.8, 1.25)
    intensity: tuple[float, float] = (0.8, 1.2)
    flip: bool = True
    sharp: bool = False
    whole: float = 0.0

    def layer(self, layers: list[RGB8], size: tuple[int, int], rng: np.random.Generator) -> RGB8:
        """Compose one rain layer.

        Args:
            layers: Grey H x W uint8 pictures of rain on black.
            size: Height and width wanted.
            rng: The source of randomness.

        Returns:
            H x W uint8.
        """
        total = np.zeros(size, np.float32)
        for _ in range(rng.integers(self.count[0], self.count[1] + 1)):
            total += self._crop(layers[rng.integers(len(layers))], size, rng)
        return np.asarray(np.minimum(total + 0.5, 255), np.uint8)

    def _crop(self, layer: RGB8, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float32]:
        """Cut one turned and scaled crop; only the pixels asked for are computed."""
        height, width = size
        if self.whole and rng.random() < self.whole:
            layer = _mirror_to(layer, height, width)
            y, x = (int(rng.integers(have - want + 1)) for have, want in zip(layer.shape, size, strict=True))
            cut = layer[y : y + height, x : x + width]
            cut = cut[:, ::-1] if self.flip and rng.random() < 0.5 else cut
            return cut * np.float32(rng.uniform(*self.intensity))
        turn = np.deg2rad(rng.uniform(-self.angle, self.angle))
        zoom = np.exp(rng.uniform(*np.log(self.scale)))
        mirror = -1.0 if self.flip and rng.random() < 0.5 else 1.0
        cos, sin = np.cos(turn) / zoom, np.sin(turn) / zoom
        # The crop's bounding box in the layer; where it does not fit, the layer is continued by mirroring.
        half_w = (abs(cos) * width + abs(sin) * height) / 2 + 1
        half_h = (abs(sin) * width + abs(cos) * height) / 2 + 1
        layer = _mirror_to(layer, int(2 * half_h) + 2, int(2 * half_w) + 2)
        x = rng.uniform(half_w, layer.shape[1] - half_w)
        y = rng.uniform(half_h, layer.shape[0] - half_h)
        a, b, d, e = mirror * cos, -sin, mirror * sin, cos
        data = (a, b, x - a * width / 2 - b * height / 2, d, e, y - d * width / 2 - e * height / 2)
        resampling = Image.Resampling.BICUBIC if self.sharp else Image.Resampling.BILINEAR
        crop = Image.fromarray(layer).transform((width, height), Image.Transform.AFFINE, data, resampling)
        return np.asarray(crop, np.float32) * np.float32(rng.uniform(*self.intensity))


def _mirror_to(layer: RGB8, height: int, width: int) -> RGB8:
    """Continue a layer by mirroring until it is at least height x width."""
    grow_y, grow_x = max(0, height - layer.shape[0]), max(0, width - layer.shape[1])
    return np.pad(layer, ((0, grow_y), (0, grow_x)), "symmetric") if grow_y or grow_x else layer


@dataclass(frozen=True)
class StreakRain:
    """Rain drawn from scratch: dots, blurred along the fall, at several depths.

    Near drops are few, long, wide and soft; far drops are many, short and thin. Each depth is a field of
    random dots convolved with one motion-blur kernel (a tapered line with a Gaussian profile).

    Attributes:
        depths: Least and most depth layers.
        direction: Least and most angle from the vertical in degrees, one for all depths up to a small spread.
        length: Least and most streak length in pixels.
        width: Least and most Gaussian width (standard deviation) of a streak in pixels.
        density: Least and most share of pixels at which a streak starts.
        intensity: Least and most peak light of a streak, 0..255.
    """

    depths: tuple[int, int] = (1, 3)
    direction: tuple[float, float] = (-35.0, 35.0)
    length: tuple[float, float] = (6.0, 60.0)
    width: tuple[float, float] = (0.4, 1.6)
    density: tuple[float, float] = (0.0005, 0.012)
    intensity: tuple[float, float] = (25.0, 170.0)

    def layer(self, size: tuple[int, int], rng: np.random.Generator) -> RGB8:
        """Draw one rain layer.

        Args:
            size: Height and width wanted.
            rng: The source of randomness.

        Returns:
            H x W uint8.
        """
        total = np.zeros(size, np.float32)
        direction = rng.uniform(*self.direction)
        for _ in range(rng.integers(self.depths[0], self.depths[1] + 1)):
            near = rng.random()
            length = self.length[0] * (self.length[1] / self.length[0]) ** near
            width = self.width[0] * (self.width[1] / self.width[0]) ** (near * rng.uniform(0.4, 1.0))
            density = np.exp(rng.uniform(*np.log(self.density))) * (12.0 / (length * width + 4.0))
            kernel = streak(length * rng.uniform(0.7, 1.3), width, direction + rng.normal(0, 3.0))
            margin = (kernel.shape[0] // 2, kernel.shape[1] // 2)
            field = (size[0] + 2 * margin[0], size[1] + 2 * margin[1])
            dots = (rng.random(field, np.float32) < density) * rng.uniform(0.4, 1.0, field).astype(np.float32)
            total += fftconvolve(dots, kernel, "valid") * np.float32(rng.uniform(*self.intensity))
        return np.asarray(np.clip(total + 0.5, 0, 255), np.uint8)


def streak(length: float, width: float, direction: float) -> NDArray[np.float32]:
    """Return the image of one falling drop: a tapered line with a Gaussian profile, peak 1.

    Args:
        length: Along the fall, in pixels.
        width: Standard deviation across, in pixels.
        direction: Angle from the vertical, in degrees.

    Returns:
        A float32 array of odd sides.
    """
    angle = np.deg2rad(direction)
    reach_y = int(np.ceil(abs(np.cos(angle)) * length / 2 + 3 * width)) + 1
    reach_x = int(np.ceil(abs(np.sin(angle)) * length / 2 + 3 * width)) + 1
    y, x = np.mgrid[-reach_y : reach_y + 1, -reach_x : reach_x + 1].astype(np.float32)
    along = x * np.sin(angle) + y * np.cos(angle)
    across = x * np.cos(angle) - y * np.sin(angle)
    taper = np.clip((length / 2 - np.abs(along)) / (0.25 * length) + 0.5, 0, 1)
    return np.asarray(taper * np.exp(-np.square(across) / (2 * width**2)), np.float32)


def cover(clean: RGB8, layer: NDArray[np.uint8], light: float) -> RGB8:
    """Lay a rain layer over a picture as drops do that hide what is behind.

    (1 - a) clean + a light, a = layer / 255. Other than added light, it shows less on bright ground and never
    gets brighter than the drops themselves.

    Args:
        clean: H x W x 3 uint8.
        layer: H x W uint8.
        light: Brightness of the drops, 0..255.
    """
    share = layer[..., None] / np.float32(255)
    return np.asarray(clean * (1 - share) + share * np.float32(light) + np.float32(0.5), np.uint8)


def sharpen_rain(clean: RGB8, rainy: RGB8, strength: float) -> RGB8:
    """Sharpen the streaks of a rainy picture and nothing else: a camera's sharpening gives them dark edges.

    Args:
        clean: H x W x 3 uint8.
        rainy: The same with rain.
        strength: Of the unsharp mask, whose radius is one pixel.
    """
    rain = rainy.astype(np.float32) - clean
    rain += np.float32(strength) * (rain - gaussian_filter(rain, (1.0, 1.0, 0.0)))
    return np.asarray(np.clip(clean + rain + np.float32(0.5), 0, 255), np.uint8)


def veil(picture: RGB8, strength: float, airlight: float = 200.0) -> RGB8:
    """Lay the grey veil of far rain over a picture: (1 - strength) picture + strength airlight."""
    return (picture * np.float32(1 - strength) + np.float32(strength * airlight + 0.5)).astype(np.uint8)


def grain(
    size: tuple[int, int], strength: float, softness: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Draw a camera's grain: grey noise, the part of noise that looks like fine rain.

    Args:
        size: Height and width.
        strength: Its standard deviation, in steps of 8 bits.
        softness: Gaussian blur before, in pixels (standard deviation): cameras smooth and shrink.
        rng: The source of randomness.

    Returns:
        H x W x 1 float32, to be added.
    """
    noise = gaussian_filter(rng.standard_normal(size, np.float32), softness)
    return np.asarray(noise * (strength / noise.std()), np.float32)[..., None]


def jpeg(picture: RGB8, quality: int) -> RGB8:
    """Compress and decompress as JPEG of the given quality, 1..95."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@dataclass(frozen=True)
class RainMaker:
    """Puts rain on clean photographs; one call, one seedable generator, uint8 in and out.

    Attributes:
        from_layers: Rain from given layers, used where layers are given.
        from_scratch: Rain drawn from scratch.
        scratch: Share of pictures whose rain is drawn from scratch (1 where no layers are given).
        cover: Share of pictures whose streaks cover what is behind them instead of adding light; see `cover`.
        sharpening: Largest strength of the streaks' sharpening; 0 for none; see `sharpen_rain`.
        veil: Largest strength of a veil over the picture; 0 for none.
        grain: Largest standard deviation of grain over the rain, in steps of 8 bits; 0 for none; see `grain`.
        jpeg: Share of pictures that are compressed as JPEG of quality 60..95 after the rain.
        dry: Share of pictures that stay without rain.
        same_camera: Whether the clean picture is veiled, grained and compressed like the rainy one, so that a
            network learns to remove the rain alone and to keep noise and texture.
    """

    from_layers: LayerRain = LayerRain()
    from_scratch: StreakRain = StreakRain()
    scratch: float = 0.0
    cover: float = 0.0
    sharpening: float = 0.0
    veil: float = 0.0
    grain: float = 0.0
    jpeg: float = 0.0
    dry: float = 0.0
    same_camera: bool = False

    def __call__(self, clean: RGB8, layers: list[RGB8], rng: np.random.Generator) -> RGB8:
        """Return the rainy version of a clean picture; see `pair`."""
        return self.pair(clean, layers, rng)[0]

    def pair(self, clean: RGB8, layers: list[RGB8], rng: np.random.Generator) -> tuple[RGB8, RGB8]:
        """Return the rainy version of a clean picture, and what a network is to make of it.

        Args:
            clean: H x W x 3 uint8.
            layers: Grey rain layers, any size; may be empty.
            rng: The source of randomness.
        """
        size = clean.shape[:2]
        if self.dry and rng.random() < self.dry:
            layer = np.zeros(size, np.uint8)
        elif not layers or rng.random() < self.scratch:
            layer = self.from_scratch.layer(size, rng)
        else:
            layer = self.from_layers.layer(layers, size, rng)
        rainy = clean
        if self.veil:
            rainy = veil(rainy, rng.uniform(0, self.veil))
        target = rainy
        if self.cover and rng.random() < self.cover:
            rainy = cover(target, layer, rng.uniform(170, 255))
        else:
            rainy = add_layer(target, layer)
        if self.sharpening:
            rainy = sharpen_rain(target, rainy, rng.uniform(0, self.sharpening))
        if self.grain:
            noise = grain(size, rng.uniform(0, self.grain), rng.uniform(0, 0.8), rng)
            rainy, target = (
                np.asarray(np.clip(side + noise + np.float32(0.5), 0, 255), np.uint8)
                for side in (rainy, target)
            )
        if self.jpeg and rng.random() < self.jpeg:
            quality = int(rng.integers(60, 96))
            rainy = jpeg(rainy, quality)
            target = jpeg(target, quality) if self.same_camera else target
        return rainy, target if self.same_camera else clean
