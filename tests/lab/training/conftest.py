"""Fixtures that the tests of training share."""

import numpy as np
import pytest
from PIL import Image

from toys_training import TOY


@pytest.fixture
def toy(tmp_path):
    rng = np.random.default_rng(0)
    for side in ("rain", "clean"):
        folder = tmp_path / "data" / "set" / side
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    recipe = tmp_path / "toy.toml"
    recipe.write_text(TOY.format(more=""))
    return tmp_path
