"""Make the pictures of this folder: free photographs from scikit-image, with rain drawn by unrain."""

from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from unrain.lab.data.rain import RainMaker, StreakRain

HERE = Path(__file__).parent
RAIN = RainMaker(
    from_scratch=StreakRain(
        depths=(3, 3), direction=(8, 14), length=(10, 45), width=(0.5, 1.3), intensity=(60, 140)
    )
)

for name, photo, seed in (("launch", "rocket", 4), ("cat", "chelsea", 7)):
    clean = np.asarray(getattr(skimage.data, photo)())
    rainy = RAIN(clean, [], np.random.default_rng(seed))
    Image.fromarray(rainy).save(HERE / f"{name}.jpg", quality=92)
