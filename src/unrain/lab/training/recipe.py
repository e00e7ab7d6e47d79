"""A recipe: everything that a training run depends on, as a TOML file that becomes a dataclass.

Unknown keys and wrong types are refused by name. Sets of pictures are folders below the data folder; other
files that a recipe names are relative to the recipe. `base` names another recipe: its keys hold where this
one has none, and a table or an array is taken whole. `sources_from` names a file of sources, each a table
under its name: `use` takes one of them, and the keys beside it replace its own.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from unrain.errors import UnrainError
from unrain.files import one_line, read, write
from unrain.lab.checkpoint import load_checkpoint, sha256
from unrain.lab.data.batches import Source, Unpaired
from unrain.lab.data.pairs import pairs, photographs, rain_layers
from unrain.lab.data.rain import RainMaker
from unrain.lab.hardware import has_bf16, torch_device
from unrain.lab.nets.layers import RecursiveNet
from unrain.lab.nets.vgg import load_vgg19
from unrain.lab.training.losses import CONTRAST_LAYERS, ContrastivePrior
from unrain.lab.training.optimiser import OPTIMISERS
from unrain.lab.training.stage import Stage

T = TypeVar("T")

# Keys that may change when a run resumes: none of them changes its weights.
FREE = {
    "checkpoint_every",
    "validate_every",
    "validation",
    "validation_levels",
    "workers",
    "summary",
    "licence",
}
_LARGEST = 1 << 20
_SUCH_AS = "give a file such as recipes/rdmc-lite/rdmc-lite.toml"


@dataclass(frozen=True)
class SourceSpec:
    """Where some of the patches come from: a set of pairs, or photographs.

    Attributes:
        pairs: A set of pairs, for example "rain100l/train"; or
        crossed: of these, the rain of one on the clean picture of another; or
        photos: folders of clean photographs.
        layers: Folders of rain layers for the rain maker.
        rain: How rain is added to the photographs; without it they stay clean.
        weight: How often this source is drawn, relative to the others.
        turns: Whether patches may be turned by quarter turns.
        flip: Whether patches may be mirrored left to right.
        stride: Patches are cut at multiples of this only: a grid of 80 is the literature's.
        without_twins_in: Leave out pairs whose background occurs in the test part of that set, for example
            "Rain800".
        native: Photographs keep their size, however large: detail as cameras record it. Otherwise those above
            1.5 megapixels are reduced.
        upright: Of so many random patches of a photograph the one with the strongest upright lines is taken.
        enlarged: Photographs are enlarged by a random factor between these two, 1 or more.
        exposure: Photographs get darker or brighter by a random factor between these two, with white where
            that is above 255.
        hold_out: Every so-manieth picture and rain layer of each folder, by name, is left out of training, to
            measure on; 0 for none.
    """

    pairs: str | None = None
    crossed: bool = False
    photos: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    rain: RainMaker | None = None
    weight: float = 1.0
    turns: bool = False
    flip: bool = True
    stride: int = 1
    without_twins_in: str | None = None
    exposure: tuple[float, float] = (1.0, 1.0)
    native: bool = False
    upright: int = 1
    enlarged: tuple[float, float] = (1.0, 1.0)
    hold_out: int = 0

    @property
    def described(self) -> str:
        """Return a line for the model's card."""
        if self.pairs is not None:
            without = f" without its twins in {self.without_twins_in}" if self.without_twins_in else ""
            crossed = ", the rain of one pair on the clean picture of another" if self.crossed else ""
            return f"{self.pairs}{without}{crossed}"
        dry = self.rain is None or self.rain.dry == 1
        rain = "left clean" if dry else f"with rain made from {', '.join(self.layers) or 'scratch'}"
        if self.rain and self.rain.grain:
            rain += ", with grain"
        low, high = self.exposure
        light = f", their light times {low:g} to {high:g}" if low != 1 or high != 1 else ""
        size = ", at native size" if self.native else ""
        if self.enlarged != (1.0, 1.0):
            size += ", enlarged {:g} to {:g} times".format(*self.enlarged)
        lines = ", patches with upright lines" if self.upright > 1 else ""
        return f"{', '.join(self.photos)}: {rain}{light}{size}{lines}"

    def load(self, root: Path, *, held_out: bool = False) -> Source:
        """Read the pictures from below the data folder.

        Args:
            root: The data folder.
            held_out: Whether to read those that are left out of training, instead of the others.

        Raises:
            UnrainError: A file or folder is missing or broken, or the source names neither pairs nor photos.
        """
        if (self.pairs is None) == (not self.photos):
            raise UnrainError("recipe: a source needs either pairs or photos")
        if self.crossed and self.pairs is None:
            raise UnrainError("recipe: crossed is for pairs, photos have no rain of their own")
        if self.stride < 1:
            raise UnrainError(f"recipe: stride is {self.stride}, but starts at 1")
        low, high = self.exposure
        if not 0 < low <= high:
            raise UnrainError(f"recipe: exposure is {low} to {high}: give two factors, the smaller one first")
        if self.pairs is not None and self.exposure != (1.0, 1.0):
            raise UnrainError("recipe: exposure is for photos, pairs have their light")
        if self.pairs is not None and self.native:
            raise UnrainError("recipe: native is for photos, pairs keep their size anyway")
        if not 1 <= self.enlarged[0] <= self.enlarged[1] or (self.pairs is not None and self.enlarged[1] > 1):
            low, high = self.enlarged
            raise UnrainError(
                f"recipe: enlarged is {low} to {high}: give two factors from 1, the smaller one first, "
                "for photos only"
            )
        if self.upright < 1 or (self.pairs is not None and self.upright > 1):
            raise UnrainError(f"recipe: upright is {self.upright}: give 1 or more, more for photos only")
        if self.hold_out < 0 or self.hold_out == 1:
            raise UnrainError(f"recipe: hold_out is {self.hold_out}: give 0, or 2 or more")

        def part(pictures: list[T]) -> list[T]:
            return [
                one
                for number, one in enumerate(pictures, 1)
                if (self.hold_out > 0 and number % self.hold_out == 0) == held_out
            ]

        if self.pairs is not None:
            found = part(pairs(root, self.pairs, without_twins_in=self.without_twins_in))
            return Source(
                pairs=found, crossed=self.crossed, turns=self.turns, flip=self.flip, stride=self.stride
            )
        return Source(
            # Folder by folder: sources that share one hold out the same pictures.
            photos=[
                one for name in self.photos for one in part(photographs(root, (name,), native=self.native))
            ],
            layers=[one for name in self.layers for one in part(rain_layers(root, (name,)))],
            maker=self.rain,
            turns=self.turns,
            flip=self.flip,
            stride=self.stride,
            exposure=self.exposure,
            upright=self.upright,
            enlarged=self.enlarged,
        )


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms; a term of weight 0 is not computed.

    Attributes:
        l1: Charbonnier distance.
        mse: Mean squared error.
        psnr: Decibels of PSNR on Y, taken away.
        ssim: 1 - SSIM over RGB.
        fourier: Distance of the spectra.
        contrastive: The contrastive prior, which needs VGG-19.
    """

    l1: float = 0.0
    mse: float = 0.0
    psnr: float = 0.0
    ssim: float = 0.0
    fourier: float = 0.0
    contrastive: float = 0.0


@dataclass(frozen=True)
class Contrast:
    """How the contrastive prior is computed.

    Attributes:
        layers: Which features: "paper", "released" or "cheap" (three shallow layers, for the CPU).
        per_layer: Add the layers' ratios, as AECR-Net does, instead of dividing sums over the layers.
        inert: Without gradient, as in the released code; for ablations.
        patches: How many patches of a batch are compared, for less time; 0 for all.
        vgg: The file of VGG-19; without it the environment variable UNRAIN_VGG19 names the file.
    """

    layers: str = "paper"
    per_layer: bool = False
    inert: bool = False
    patches: int = 0
    vgg: str | None = None

    def load(self) -> ContrastivePrior:
        """Read VGG-19.

        Raises:
            UnrainError: Its file is missing or broken.
        """
        vgg = load_vgg19(Path(self.vgg) if self.vgg else None)
        return ContrastivePrior(
            vgg, self.layers, per_layer=self.per_layer, inert=self.inert, patches=self.patches
        )


@dataclass(frozen=True)
class Distillation:
    """A trained network, usually a larger one, whose results are learnt besides the ground truth.

    Attributes:
        weights: Its file (.safetensors).
        sha256: Its SHA-256; another file of that name is refused. Without it any file is taken.
        weight: Of the loss against its result, relative to that against the ground truth.
        recursions: Its number of recursions.
    """

    weights: str
    sha256: str = ""
    weight: float = 1.0
    recursions: int = 1

    def load(self) -> RecursiveNet:
        """Build it.

        Raises:
            UnrainError: The file is missing, broken or another one.
        """
        path = Path(self.weights)
        if self.sha256 and path.is_file() and sha256(path) != self.sha256:
            raise UnrainError(f"{path}: not the weights with the SHA-256 {self.sha256}, get those back")
        return load_checkpoint(path).net


@dataclass(frozen=True)
class Initial:
    """The weights that a run starts from.

    Attributes:
        weights: The file (.safetensors).
        sha256: Its SHA-256; another file of that name is refused. Without it any file is taken.
        source: The command that brings the file, named where it is missing.
        refold: Whether the file holds an rdmc_lite with other numbers of blocks, or one that folds fewer
            pixels and has finer levels: the network then takes over what both have, see `refold`.
    """

    weights: str
    sha256: str = ""
    source: str = ""
    refold: bool = False


@dataclass(frozen=True)
class Real:
    """Photographs of real rain, and what is learnt from them in the stages that draw real patches.

    Attributes:
        photos: Folders of rainy photographs.
        clean: Folders of clean photographs, unpaired; without any the clean pictures of the sources are used.
        rain_contrast: Weight of the contrast in the space of rain layers.
        clean_contrast: Weight of the contrast in the space of clean pictures.
        warmup: Steps over which both rise from 0.
        augment: Whether the contrast's samples are augmented.
        encoder_steps: Steps of 16 patches for which the contrast's encoders are trained before the run.
        total_variation: Weight of the results' total variation.
        low_pass: Weight of the change in low frequencies.
        dark_channel: Weight of the results' dark channel.
        teacher: Weight of the loss against the averaged network's result, for the patches as they are and for
            half of them with more rain on them.
        darkest: Whether that result is the darkest of three views: the patch, its mirror image, a smaller
            copy.
    """

    photos: tuple[str, ...]
    clean: tuple[str, ...] = ()
    rain_contrast: float = 0.03
    clean_contrast: float = 0.03
    warmup: int = 500
    augment: bool = True
    encoder_steps: int = 400
    total_variation: float = 1e-3
    low_pass: float = 0.1
    dark_channel: float = 0.0
    teacher: float = 0.0
    darkest: bool = False

    @property
    def described(self) -> list[str]:
        """Return lines for the model's card."""
        clean = [f"{', '.join(self.clean)}: clean, unpaired"] if self.clean else []
        return [f"{', '.join(self.photos)}: real rain without ground truth", *clean]

    def load(self, root: Path) -> Unpaired:
        """Read the pictures from below the data folder.

        Raises:
            UnrainError: A file or folder is missing or broken.
        """
        clean = Source(photos=photographs(root, self.clean)) if self.clean else None
        return Unpaired(Source(photos=photographs(root, self.photos)), clean)


@dataclass(frozen=True)
class Search(Stage):
    """How `unrain search` works: a stage of training, and how the architecture is learnt in it.

    Attributes:
        architecture_lr: Learning rate of the architecture: the strengths of the skips and the upsampling.
        architecture_betas: Moments of its Adam.
        architecture_decay: Its weight decay.
        keep: How many "down" and how many "up" skips are kept.
    """

    architecture_lr: float = 3e-4
    architecture_betas: tuple[float, float] = (0.5, 0.999)
    architecture_decay: float = 1e-3
    keep: int = 2


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        network: Name in `unrain.lab.nets`.
        sources: Where patches come from.
        stages: Parts of the run: steps, patch, batch, recursions, learning rate.
        loss: Weights of the loss terms.
        contrastive: How its contrastive term is computed.
        distillation: A network whose results are learnt too.
        real: Real rain, for stages that draw it.
        search: How `unrain search` works; training ignores it.
        summary: What the model is for, in a line: it goes into its card.
        licence: Under which its weights are given away.
        arguments: Constructor arguments of the network.
        initial: The weights to start from.
        share: How far from these to the trained weights the result is interpolated (Wortsman et al., "Robust
            fine-tuning of zero-shot models", CVPR 2022).
        validation: Sets of pairs that are measured whole.
        validation_levels: They are also measured at 2, 4, .. times their size, from coarse to fine in so many
            levels; 1 for their own size only.
        validate_every: Steps between validations; 0 for the end only.
        checkpoint_every: Steps between checkpoints.
        recursion_weights: Weights of the loss on x_1 .. x_T, aligned at the last; a missing one is 0. In a
            stage with `split` each is its recursion's share of the batch.
        optimiser: "adamw", or "muon" (kernels by Muon, the rest by AdamW).
        momentum: Of Muon.
        newton_schulz: Iterations of Muon's orthogonalisation.
        adamw_lr: AdamW's learning rate beside Muon, relative to Muon's.
        betas: Moments of AdamW.
        weight_decay: Its decay; without any it is Adam.
        clip: Largest gradient norm; inf for no limit.
        ema: Decay of the exponential moving average of the weights; 0 for the last weights.
        precision: "bf16" (autocast), "fp32", or "auto": bf16 where the hardware has instructions for it.
        compile: Whether torch.compile is used.
        workers: Processes that make patches; 0 for the training process itself.
        seed: Seed of weights and patches.
    """

    network: str
    sources: tuple[SourceSpec, ...]
    stages: tuple[Stage, ...]
    loss: LossWeights
    contrastive: Contrast = Contrast()
    distillation: Distillation | None = None
    real: Real | None = None
    search: Search | None = None
    summary: str = ""
    licence: str = "Apache-2.0"
    arguments: dict[str, Any] = field(default_factory=dict)
    initial: Initial | None = None
    share: float = 1.0
    validation: tuple[str, ...] = ()
    validation_levels: int = 1
    validate_every: int = 0
    checkpoint_every: int = 500
    recursion_weights: tuple[float, ...] = (1.0,)
    optimiser: str = "adamw"
    momentum: float = 0.9
    newton_schulz: int = 5
    adamw_lr: float = 1.0
    betas: tuple[float, ...] = (0.9, 0.9)
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    precision: str = "auto"
    compile: bool = False
    workers: int = 0
    seed: int = 0

    @property
    def steps(self) -> int:
        """Return the optimiser steps of the whole run."""
        return sum(stage.steps for stage in self.stages)

    @property
    def bf16(self) -> bool:
        """Return whether this machine trains the recipe in bf16."""
        return self.precision == "bf16" or (self.precision == "auto" and has_bf16(torch_device("").type))

    @property
    def training_data(self) -> list[str]:
        """Return lines for the model's card."""
        return [spec.described for spec in self.sources] + (self.real.described if self.real else [])


# More steps or pixels than any run has.
_ENDLESS = 10**9


def read_recipe(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        UnrainError: The file is missing, is no TOML, has an unknown or a missing key, or a value of a wrong
            type.
    """
    return recipe_from(_with_base(path), str(path), path.parent)


def _with_base(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe's table, laid over that of its base, whose files get absolute paths."""
    table = read_table(path)
    if "base" not in table:
        return table
    name = table.pop("base")
    if not isinstance(name, str):
        raise UnrainError(f"{path}: base: {name!r} is no name of a recipe")
    file = path.parent / name
    above = (*above, path.resolve())
    if file.resolve() in above:
        raise UnrainError(f"{path}: base: {name} is based on this recipe")
    return _beside(file.parent, _with_base(file, above)) | table


def recipe_from(table: dict[str, Any], where: str, beside: Path) -> Recipe:
    """Make a recipe from a TOML table, whatever file that is in.

    Args:
        table: The table.
        where: What errors begin with.
        beside: The folder that files named in it are relative to.

    Raises:
        UnrainError: As `read_recipe`; the message begins with `where`.
    """
    recipe = from_table(Recipe, _with_sources(_beside(beside, table), where), where)
    for key, value, known in (
        ("precision", recipe.precision, ("auto", "bf16", "fp32")),
        ("optimiser", recipe.optimiser, OPTIMISERS),
        ("layers", recipe.contrastive.layers, tuple(CONTRAST_LAYERS)),
    ):
        if value not in known:
            raise UnrainError(f"{where}: {key} is {value!r}, choose {', '.join(known[:-1])} or {known[-1]}")
    if not recipe.sources or not recipe.stages:
        raise UnrainError(f"{where}: needs at least one [[sources]] and one [[stages]]")
    for stage in (*recipe.stages, *filter(None, [recipe.search])):
        for key in ("steps", "patch", "recursions"):
            if not 1 <= getattr(stage, key) < _ENDLESS:
                raise UnrainError(
                    f"{where}: {key} is {getattr(stage, key)}, give 1 or more, below {_ENDLESS}"
                )
    if recipe.checkpoint_every < 1:
        raise UnrainError(f"{where}: checkpoint_every is {recipe.checkpoint_every}, give 1 or more")
    if not 0 < recipe.share <= 1 or (recipe.share < 1 and not recipe.initial):
        raise UnrainError(
            f"{where}: share is {recipe.share}: give a part of 1, and weights to start from as initial"
        )
    if any(stage.real > 0 for stage in recipe.stages) != (recipe.real is not None):
        raise UnrainError(f"{where}: a [real] table and stages with real patches (real = 8) go together")
    if recipe.real is not None and not recipe.real.photos:
        raise UnrainError(f"{where}: real: photos is empty, name a folder of rainy photographs")
    split = max((stage.recursions for stage in recipe.stages if stage.split), default=0)
    if split and (len(recipe.recursion_weights) < split or min(recipe.recursion_weights[-split:]) <= 0):
        raise UnrainError(
            f"{where}: recursion_weights: split needs a weight above 0 for each of {split} recursions"
        )
    if any(stage.split and stage.batch < stage.recursions + (stage.lifted > 0) for stage in recipe.stages):
        raise UnrainError(f"{where}: batch: split needs at least one patch for each recursion and for lifted")
    if any(stage.lifted < 0 or (stage.lifted and not stage.split) for stage in recipe.stages):
        raise UnrainError(f"{where}: lifted: give a weight above 0 in a stage with split = true")
    if recipe.validation_levels < 1:
        raise UnrainError(f"{where}: validation_levels is {recipe.validation_levels}, but starts at 1")
    return recipe


def _with_sources(table: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a recipe's table in which the sources taken by name are written out."""
    file, listed = table.get("sources_from"), table.get("sources")
    table = {key: value for key, value in table.items() if key != "sources_from"}
    if file is not None and not isinstance(file, str):
        raise UnrainError(f"{where}: sources_from: {file!r} is no name of a file")
    if not isinstance(listed, list):  # refused later, by name
        return table
    known = read_table(Path(file)) if file is not None else {}

    def written_out(source: Any) -> Any:  # noqa: ANN401  (TOML's values)
        if not isinstance(source, dict) or "use" not in source:
            return source
        if file is None:
            raise UnrainError(f"{where}: sources: use needs sources_from, the file that the names are in")
        own = dict(source)
        if not isinstance(name := own.pop("use"), str) or not isinstance(known.get(name), dict):
            raise UnrainError(f"{where}: sources: {file} has no {name!r}, but {', '.join(known)}")
        return known[name] | own

    return table | {"sources": [written_out(one) for one in listed]}


def _beside(folder: Path, table: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe's table in which files, named relative to a folder, have absolute paths."""
    table = dict(table)
    if isinstance(table.get("sources_from"), str):
        table["sources_from"] = str((folder / table["sources_from"]).resolve())
    for key, name in (("initial", "weights"), ("distillation", "weights"), ("contrastive", "vgg")):
        inner = table.get(key)
        # What is of another type is refused later, by name.
        if isinstance(inner, dict) and isinstance(inner.get(name), str) and inner[name]:
            table[key] = inner | {name: str((folder / inner[name]).resolve())}
    return table


def read_table(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UnrainError: It is missing, far too large, or no TOML.
    """
    data = read(path, _LARGEST, _SUCH_AS)
    try:
        return tomllib.loads(data.decode())
    except RecursionError as error:
        raise UnrainError(f"{path}: not a TOML file (nested too deeply); {_SUCH_AS}") from error
    except ValueError as error:
        raise UnrainError(f"{path}: not a TOML file ({one_line(error)}); {_SUCH_AS}") from error


def write_recipe(recipe: Recipe, path: Path, comment: str) -> None:
    """Write a recipe as a TOML file that `read_recipe` reads back unchanged; defaults are left out.

    Args:
        recipe: What to write.
        path: The file.
        comment: Its first line.
    """
    text = "\n".join([f"# {comment}", *_lines(_table(recipe), "")]) + "\n"
    write(text.encode(), path)


def fingerprint(recipe: Recipe) -> dict[str, Any]:
    """Return every setting that is not at its default by its dotted name, for example "stages.1.lr".

    Files are named without their folders, so that a checkpoint resumes in another checkout.
    """
    initial, teacher, vgg = recipe.initial, recipe.distillation, recipe.contrastive.vgg
    named = dataclasses.replace(
        recipe,
        initial=dataclasses.replace(initial, weights=Path(initial.weights).name) if initial else None,
        distillation=dataclasses.replace(teacher, weights=Path(teacher.weights).name) if teacher else None,
        contrastive=dataclasses.replace(recipe.contrastive, vgg=Path(vgg).name if vgg else None),
    )
    return dict(_flat(_table(named), ""))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return what differs between two fingerprints and changes the training, as "key (before, now)"."""
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return [
        f"{key} ({before.get(key, 'default')}, now {now.get(key, 'default')})"
        for key in keys
        if key not in FREE
    ]


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401  (types are data here)
    """Flatten a table; tables in an array are numbered from 1."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        value = {str(number): one for number, one in enumerate(value, 1)}
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _flat(one, f"{name}.{key}" if name else key)
    else:
        yield name, value


def _table(one: Any) -> dict[str, Any]:  # noqa: ANN401  (any of the dataclasses here)
    """Return a dataclass as a table without the settings at their defaults."""
    table = {}
    for f in dataclasses.fields(one):
        value = getattr(one, f.name)
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        if value != default:
            table[f.name] = _plain(value)
    return table


def _plain(value: Any) -> Any:  # noqa: ANN401  (types are data here)
    """Return a value as TOML has it: dataclasses as tables, tuples as arrays."""
    if dataclasses.is_dataclass(value):
        return _table(value)
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def _lines(table: dict[str, Any], name: str) -> list[str]:
    """Write a table as TOML: its values first, then the tables in it."""
    lines, inner = [], []
    for key, value in table.items():
        path = f"{name}.{key}" if name else key
        if isinstance(value, dict):
            inner += ["", f"[{path}]", *_lines(value, path)]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for one in value:
                inner += ["", f"[[{path}]]", *_lines(one, path)]
        else:
            lines.append(f"{key} = {_spelled(value)}")
    return lines + inner


def _spelled(value: Any) -> str:  # noqa: ANN401  (types are data here)
    """Write a single value as TOML."""
    if isinstance(value, list):
        return f"[{', '.join(map(_spelled, value))}]"
    # JSON's strings and booleans are TOML's too; its infinity is not.
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def from_table(kind: type[T], table: dict[str, Any], where: str) -> T:
    """Make a dataclass from a TOML table, refusing what it has no field for.

    Raises:
        UnrainError: A key is unknown or missing, or a value of a wrong type; the message begins with `where`.
    """
    hints = get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(table.keys() - fields.keys())
    if unknown:
        raise UnrainError(f"{where}: unknown key {unknown[0]!r}; known here: {', '.join(fields)}")
    for name, one in fields.items():
        required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise UnrainError(f"{where}: the key {name!r} is missing")
    return kind(**{name: _value(hints[name], value, f"{where}: {name}") for name, value in table.items()})


def _value(hint: Any, value: Any, where: str) -> Any:  # noqa: ANN401  (types are data here)
    """Check one value against its annotation; tables become dataclasses and arrays tuples."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is types.UnionType:
        return _value(next(one for one in inner if one is not type(None)), value, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, dict):
            return from_table(hint, value, where)
        known = ", ".join(one.name for one in dataclasses.fields(hint))
        raise UnrainError(f"{where}: {value!r} is no table; give one with keys of {known}")
    elif origin is tuple and isinstance(value, list):
        if inner[-1] is not Ellipsis and len(inner) != len(value):
            raise UnrainError(f"{where}: needs {len(inner)} values, not {len(value)}")
        return tuple(_value(inner[0], one, where) for one in value)
    elif origin is dict and isinstance(value, dict):
        return value
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:
        return value
    raise UnrainError(f"{where}: {value!r} is no {getattr(hint, '__name__', hint)}")
