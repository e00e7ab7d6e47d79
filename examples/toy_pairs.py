"""Draw a toy data set, to try training on: `python examples/toy_pairs.py DATA` writes DATA/toy.

Four free photographs that come with scikit-image, with drawn rain: enough to see that everything works, far
too few to train a network that is of any use.
"""

import sys
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from unrain.lab.data.rain import RainMaker, StreakRain

RAIN = RainMaker(
    from_scratch=StreakRain(depths=(1, 2), length=(10, 40), width=(0.6, 1.4), intensity=(60, 160))
)
SETS = {"train": ("astronaut", "coffee", "rocket"), "test": ("chelsea",)}
VIEWS = {"train": 4, "test": 1}


def main(root: Path) -> None:
    """Write the pairs below a folder."""
    random = np.random.default_rng(0)
    for part, photos in SETS.items():
        for side in ("rain", "clean"):
            (root / "toy" / part / side).mkdir(parents=True, exist_ok=True)
        for photo in photos:
            clean = np.asarray(getattr(skimage.data, photo)())[:240, :320]
            for number in range(1, VIEWS[part] + 1):
                name = f"{photo}-{number}.png"
                Image.fromarray(RAIN(clean, [], random)).save(root / "toy" / part / "rain" / name)
                Image.fromarray(clean).save(root / "toy" / part / "clean" / name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("give the folder to write to: python examples/toy_pairs.py DATA")
    main(Path(sys.argv[1]))
