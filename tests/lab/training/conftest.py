"""Fixtures that the tests of training share."""

import pytest

from toys import toy_pairs
from toys_training import TOY


@pytest.fixture
def toy(tmp_path):
    toy_pairs(tmp_path, 3, 40, 32)
    recipe = tmp_path / "toy.toml"
    recipe.write_text(TOY.format(more=""))
    return tmp_path
