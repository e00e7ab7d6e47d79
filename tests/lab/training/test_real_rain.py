"""Learning from real rain: what has gradients, what stays unchanged, and that a killed run resumes."""

import numpy as np
import pytest
from PIL import Image

from toys import natural

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_lightning")
from safetensors.torch import load_file  # noqa: E402

from unrain.errors import UnrainError  # noqa: E402
from unrain.lab.checkpoint import load_checkpoint  # noqa: E402
from unrain.lab.nets import build  # noqa: E402
from unrain.lab.training import train as trainer  # noqa: E402
from unrain.lab.training.batch_norm import frozen_statistics  # noqa: E402
from unrain.lab.training.module import Deraining  # noqa: E402
from unrain.lab.training.real_rain import (  # noqa: E402
    NOISE,
    RealBatch,
    RealRain,
    contrast_share,
    darkest_view,
)
from unrain.lab.training.recipe import LossWeights, Real, Recipe, SourceSpec, read_recipe  # noqa: E402
from unrain.lab.training.stage import Stage  # noqa: E402

pytestmark = pytest.mark.slow

SMALL = {"width": 16, "rain_blocks": 1, "detail_blocks": 1, "fold": 2, "window": 32}
CONTRAST = Real(photos=("real",), total_variation=0.0, low_pass=0.0)
RECIPE = """
network = "semi_drdnet"
recursion_weights = [0.1, 1.0]
checkpoint_every = 2
ema = 0.5
[arguments]
width = 16
rain_blocks = 1
detail_blocks = 1
fold = 2
window = 32
[loss]
l1 = 1.0
[[stages]]
steps = 2
patch = 32
batch = 2
[[stages]]
steps = 3
patch = 32
batch = 2
real = 2
[[sources]]
photos = ["clean"]
[sources.rain]
[real]
photos = ["wet"]
clean = ["clean"]
warmup = 2
encoder_steps = 2
teacher = 0.5
darkest = true
dark_channel = 0.01
"""


@pytest.fixture
def toy(tmp_path):
    for seed in range(4):
        folder = tmp_path / "data" / ("clean" if seed % 2 else "wet")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(natural(48, 40, seed)).save(folder / f"{seed}.png")
    (tmp_path / "toy.toml").write_text(RECIPE)
    return tmp_path


def stirred(name="semi_drdnet", **arguments):
    """A network whose last layers do not give the picture back."""
    torch.manual_seed(0)
    net = build(name, **(arguments or SMALL))
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net.train()


def patches(count=2, seed=0, size=32):
    return torch.from_numpy(np.stack([natural(size, size, seed + i) for i in range(count)])).permute(
        0, 3, 1, 2
    )


def streaks(count=2, size=32):
    columns = (torch.rand(count, 1, 1, size, generator=torch.Generator().manual_seed(5)) > 0.8).float()
    return (columns * 0.4).expand(count, 3, size, size).contiguous()


def test_the_contrast_reaches_the_derainer_through_its_own_pictures_alone():
    net, real = stirred(), RealRain(CONTRAST)
    rainy, layers, clean = patches() / 255, streaks(), patches(seed=2) / 255
    for key in (layers, clean):
        key.requires_grad_()
    estimates = net(rainy)
    terms = real(RealBatch(rainy, net.rain_in(rainy, estimates), estimates[-1], layers, clean), seeded())
    (terms["rain_contrast"] + terms["clean_contrast"]).backward()
    assert [name for name, one in net.named_parameters() if one.grad is None or not one.grad.any()] == []
    assert layers.grad is None and clean.grad is None
    assert all(one.grad is None for one in real.parameters())


def seeded():
    return torch.Generator().manual_seed(0)


def test_semi_drdnet_is_asked_for_its_rain_layer_and_others_for_what_they_took():
    rainy = patches() / 255
    semi = stirred().eval()
    parts = semi.separate(rainy)
    torch.testing.assert_close(semi.rain_in(rainy, semi(rainy)), parts.rain)
    assert (parts.rain - (rainy - parts.final)).abs().max() > 1e-3
    lite = stirred("rdmc_lite", width=24, encoder=[1, 1], decoder=[1]).eval()
    torch.testing.assert_close(lite.rain_in(rainy, lite(rainy, 2)), rainy - lite(rainy, 2)[-1])


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (Real(("x",), dark_channel=1.0), {"rain_contrast", "clean_contrast", "dark_channel"}),
        (Real(("x",), rain_contrast=0.0, clean_contrast=0.0), set()),
    ],
)
def test_a_term_without_weight_is_not_computed(spec, names):
    rainy = patches() / 255
    terms = RealRain(spec)(RealBatch(rainy, streaks(), rainy, streaks(), rainy), seeded())
    assert set(terms) == names | {"total_variation", "low_pass"}


def test_terms_count_by_their_weights_and_the_contrast_by_its_share_besides():
    real = RealRain(Real(("x",), rain_contrast=2.0, clean_contrast=3.0, low_pass=5.0, teacher=7.0))
    ones = {name: torch.tensor(1.0) for name in ("rain_contrast", "clean_contrast", "low_pass")}
    assert float(real.weigh(ones, 1.0)) == 2 + 3 + 5
    assert float(real.weigh(ones, 0.5)) == 1 + 1.5 + 5
    assert float(real.weigh({"teacher": torch.tensor(1.0)}, 0.0)) == 7


def test_the_contrast_warms_up_once_real_rain_begins():
    stages = (Stage(10), Stage(8, real=2), Stage(8, real=2))
    assert [contrast_share(stages, step, 4) for step in (10, 11, 13, 14, 18, 25)] == [0.25, 0.5, 1, 1, 1, 1]
    assert contrast_share(stages, 10, 0) == 1


@pytest.mark.parametrize("bf16", [False, True])
def test_statistics_that_are_frozen_stay_and_are_what_normalises(bf16):
    net = stirred()
    rainy = patches() / 255
    with torch.no_grad():
        net(rainy)
    before = {name: value.clone() for name, value in net.named_buffers()}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16), frozen_statistics(net):
        frozen = net(rainy.flip(0))
        frozen[-1].square().mean().backward()
    assert net.training and all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert all(one.grad.any() for name, one in net.named_parameters() if "detail" in name)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        torch.testing.assert_close(frozen, net.eval()(rainy.flip(0)))


class Half(torch.nn.Module):
    """Takes a tenth of the light away, in pictures narrower than `below`, and on the left half only."""

    def __init__(self, below):
        super().__init__()
        self.below = below

    def forward(self, rainy, recursions):
        light = torch.zeros_like(rainy)
        width = rainy.shape[-1]
        light[..., : width // 2] = 0.1 if width < self.below else 0.0
        return [rainy, rainy - light]


def test_the_darkest_view_lacks_the_rain_found_in_any_of_the_three():
    rainy = torch.rand(2, 3, 32, 32, generator=seeded()) * 0.5 + 0.3
    # Not at the middle, where the enlarged copy of an edge overshoots.
    both = darkest_view(Half(99), rainy, 1)
    torch.testing.assert_close(both[..., :13], rainy[..., :13] - 0.1)
    torch.testing.assert_close(both[..., 19:], rainy[..., 19:] - (0.1 - NOISE))
    # Only the copy of 24 pixels is narrow enough: its rain is on the left.
    smaller = darkest_view(Half(32), rainy, 1)
    torch.testing.assert_close(smaller[..., :13], rainy[..., :13] - (0.1 - NOISE))
    torch.testing.assert_close(smaller[..., 19:], rainy[..., 19:])
    torch.testing.assert_close(darkest_view(Half(0), rainy, 1), rainy)


def test_the_darkest_view_stays_in_range_and_is_nowhere_lighter_than_the_result():
    net = stirred().eval()
    rainy = patches() / 255
    with torch.no_grad():
        darkest, result = darkest_view(net, rainy, 1), net(rainy, 1)[-1].clamp(0, 1)
    assert float(darkest.min()) >= 0 and bool((darkest <= result).all()) and bool((darkest < result).any())


def test_real_patches_teach_weights_but_no_statistics():
    recipe = Recipe(
        "semi_drdnet",
        (SourceSpec("x"),),
        (Stage(1, real=2),),
        LossWeights(l1=1.0),
        real=Real(("x",)),
        arguments=SMALL,
    )
    module = Deraining(recipe).train()
    module.net = stirred()
    before = {name: value.clone() for name, value in module.net.named_buffers()}
    clean = patches(seed=4)
    rainy = (clean + (streaks() * 255).byte()).clamp(max=255)
    module.real_loss((rainy, clean, patches(), patches(seed=2)), recipe.stages[0]).backward()
    assert all(torch.equal(value, before[name]) for name, value in module.net.named_buffers())
    # The one squeezed channel may be shut by its ReLU.
    learning = {
        n: one for n, one in module.net.named_parameters() if "squeeze" not in n and "excite" not in n
    }
    assert [name for name, one in learning.items() if not one.grad.any()] == []
    # Synthetic patches beside them normalise as the real ones do; alone they teach statistics, too.
    module.loss((rainy, clean), recipe.stages[0])
    module.recalibrate([])
    assert all(torch.equal(value, before[name]) for name, value in module.net.named_buffers())
    module.loss((rainy, clean), Stage(1, frozen=True))
    assert all(torch.equal(value, before[name]) for name, value in module.net.named_buffers())
    module.loss((rainy, clean), Stage(1))
    assert not all(torch.equal(value, before[name]) for name, value in module.net.named_buffers())


@pytest.mark.parametrize(("count", "recursions"), [(1, 2), (2, 3), (4, 1)])
def test_the_teacher_takes_any_number_of_real_patches_and_recursions(monkeypatch, count, recursions):
    stage = Stage(1, real=count, recursions=recursions)
    recipe = Recipe("semi_drdnet", (SourceSpec("x"),), (stage,), LossWeights(l1=1.0), arguments=SMALL)
    module = Deraining(recipe)
    real, seen = patches()[:1].expand(count, -1, -1, -1) / 255, []
    monkeypatch.setattr(module, "pseudo_clean", lambda real, stage: real)
    monkeypatch.setattr(module, "estimates", lambda rainy, stage: [seen.append(len(rainy)) or rainy])
    module.teacher_loss(real, [real], streaks(), stage, seeded())
    assert seen == [{1: 1, 2: 2, 4: 2}[count]]


def test_a_killed_run_on_real_rain_resumes_with_its_encoders(toy, dies_at):
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "whole")
    with dies_at(Deraining, 4):
        trainer.train(toy / "toy.toml", toy / "data", out=toy / "parts")
    trainer.train(toy / "toy.toml", toy / "data", out=toy / "parts")
    whole, parts = (load_file(toy / run / "weights.safetensors") for run in ("whole", "parts"))
    # The encoders are for training only.
    assert whole.keys() == build("semi_drdnet", **SMALL).state_dict().keys()
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], rtol=1e-4, atol=1e-6, msg=name)
    card = load_checkpoint(toy / "whole" / "weights.safetensors").card
    assert card["training_data"][1:] == [
        "wet: real rain without ground truth",
        "clean: clean, unpaired",
    ]


def test_the_encoders_learn_before_all_else_and_lie_in_the_checkpoint(toy, monkeypatch):
    fits = []
    monkeypatch.setattr(trainer.pl.Trainer, "fit", lambda self, module, *_, **__: fits.append(module))
    for steps in (0, 2):
        (toy / "toy.toml").write_text(RECIPE.replace("encoder_steps = 2", f"encoder_steps = {steps}"))
        trainer.train(toy / "toy.toml", toy / "data", out=toy / f"run{steps}")
    fresh, trained = (module.state_dict() for module in fits)
    # The bias before instance normalisation has no effect.
    learning = [name for name in fresh if ".dscr." in name and not name.endswith("features.0.bias")]
    assert len(learning) == 2 * 11
    assert [name for name in learning if torch.equal(fresh[name], trained[name])] == []
    assert all(torch.equal(fresh[name], trained[name]) for name in fresh if ".dscr." not in name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("real = 2", "", r"a \[real\] table and stages with real patches"),
        ("[real]\n", "[real]\ndrizzle = 1\n", "real: unknown key 'drizzle'"),
        ('photos = ["wet"]', "photos = []", "real: photos is empty"),
        ('photos = ["wet"]', "", "real: the key 'photos' is missing"),
        ("warmup = 2", "warmup = 2.5", "real: warmup: 2.5 is no int"),
    ],
)
def test_a_wrong_recipe_for_real_rain_is_refused_by_name(toy, old, new, message):
    assert old in RECIPE
    (toy / "toy.toml").write_text(RECIPE.replace(old, new))
    with pytest.raises(UnrainError, match=message):
        read_recipe(toy / "toy.toml")


def test_a_missing_folder_of_real_rain_is_named(toy):
    (toy / "toy.toml").write_text(RECIPE.replace('["wet"]', '["sunny"]'))
    with pytest.raises(UnrainError, match=r"sunny: no such folder"):
        trainer.train(toy / "toy.toml", toy / "data", out=toy / "run")
