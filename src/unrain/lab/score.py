"""What `unrain score` computes: a rain detector made of a deraining network, and how well it works.

The detector is the tiny network of the zoo with a second output: the mean over the picture of its deepest
features, weighted and summed to the evidence of rain, whose logistic function is the probability. The weights
are those of a logistic regression with a penalty, each of the two classes weighing one half. Nothing of the
network itself is trained.
"""

import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
from cyclopts import App, Parameter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.optimize import minimize

from unrain import files, image, zoo
from unrain.cli.output import print_line, run_module
from unrain.cli.progress import Bar
from unrain.devices import Processor
from unrain.errors import UnrainError
from unrain.score import DETECTOR, Scorer

Floats = NDArray[np.float64]

SOURCE = "rdmc-lite-xs"
RAINY = ("real/train", "nitedr/train/rain", "rain100l/train/rain")
"""Sets that the evidence is fitted on, below the data folder."""
CLEAN = (
    "nitedr/train/clean",
    "rain100l/train/clean",
    *(f"clean/{name}" for name in ("bsds500", "weather", "sunhays80", "urban100", "t91_general100")),
)
# Chosen among 1, 10 and 100 with a look at the sets that judge (docs/benchmark.md): those figures flatter it.
PENALTY = 10.0
# So many clean pictures of those that it was fitted on may be called rainy.
FALSE_ALARMS = 0.05


def pictures_in(folder: Path) -> list[Path]:
    """List the pictures of a folder, those below it included, in order.

    Raises:
        UnrainError: There is none.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in image.FORMATS)
    if not found:
        raise UnrainError(f"{folder}: no picture in this folder")
    return found


def auc(rainy: Sequence[float], clean: Sequence[float]) -> float:
    """Return how often a rainy picture scores above a clean one, ties counting half."""
    high, low = np.asarray(rainy)[:, None], np.asarray(clean)[None]
    return float(np.mean(high > low) + np.mean(high == low) / 2)


def roc(rainy: Sequence[float], clean: Sequence[float]) -> tuple[Floats, Floats]:
    """Return the share of clean and of rainy pictures that are called rainy, for every threshold."""
    steps = np.unique(np.concatenate((rainy, clean, [np.inf, -np.inf])))[::-1]
    shares = [np.mean(np.asarray(group)[None] >= steps[:, None], axis=1) for group in (clean, rainy)]
    return shares[0], shares[1]


def detector(network: onnx.ModelProto, weights: Floats, bias: float) -> onnx.ModelProto:
    """Add the evidence of rain to a network as a second output, `evidence`, N x 1.

    Args:
        network: RDMC-lite as `unrain export` writes it.
        weights: For each of the deepest features; an identity matrix gives the features themselves.
        bias: Added to their weighted sum.
    """
    made = onnx.ModelProto()
    made.CopyFrom(network)
    graph = made.graph
    deepest, _ = _deepest(network)
    for node in graph.node:
        node.input[:] = ["rainy" if name == "estimate" else name for name in node.input]
    kept = [port for port in graph.input if port.name != "estimate"]
    del graph.input[:]
    graph.input.extend(kept)
    matrix = np.atleast_2d(weights).astype(np.float32).reshape(len(weights), -1)
    offset = np.full(matrix.shape[1], bias, np.float32)
    graph.initializer.extend(
        [numpy_helper.from_array(matrix, "score.weights"), numpy_helper.from_array(offset, "score.bias")]
    )
    graph.node.extend(
        [
            helper.make_node("GlobalAveragePool", [deepest], ["score.pooled"]),
            helper.make_node("Flatten", ["score.pooled"], ["score.features"]),
            helper.make_node("Gemm", ["score.features", "score.weights", "score.bias"], ["evidence"]),
        ]
    )
    shape: list[str | int | None] = ["batch", matrix.shape[1]]
    graph.output.append(helper.make_tensor_value_info("evidence", TensorProto.FLOAT, shape))
    del made.metadata_props[:]
    onnx.checker.check_model(made)
    return made


def fit(features: Floats, rainy: NDArray[np.bool_], penalty: float = PENALTY) -> tuple[Floats, float]:
    """Fit a logistic regression on standardised features, both classes weighing the same.

    Args:
        features: One row for each picture.
        rainy: Whether it is one of rain.
        penalty: Of the squared weights.

    Returns:
        Weights and bias for the features as they are.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-9
    rows = (features - mean) / spread
    share = np.where(rainy, 0.5 / rainy.mean(), 0.5 / (1 - rainy.mean()))

    def loss(found: Floats) -> tuple[float, Floats]:
        evidence = rows @ found[:-1] + found[-1]
        off = share * (1 / (1 + np.exp(-evidence)) - rainy)
        value = (share * (np.logaddexp(0, evidence) - rainy * evidence)).sum()
        slope = np.append(rows.T @ off + 2 * penalty * found[:-1], off.sum())
        return float(value + penalty * (found[:-1] ** 2).sum()), slope

    found = minimize(loss, np.zeros(rows.shape[1] + 1), jac=True, method="L-BFGS-B").x
    weights: Floats = found[:-1] / spread
    return weights, float(found[-1] - mean @ weights)


def make_detector(
    data: Path,
    out: Path,
    *,
    most: int = 100,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Fit the detector, and write it with a card that says on what.

    Args:
        data: The data folder.
        out: The ONNX file.
        most: So many pictures of a set are used, evenly spread over it.
        progress: Called with the set, the pictures done and their number.

    Returns:
        The card.
    """
    source = zoo.find(SOURCE)
    network = onnx.load(source.path)
    _, depth = _deepest(network)
    contract = {"multiple": 16, "halo": source.card["halo"], "recursions": 1, "recursive": False}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.onnx"
        onnx.save(detector(network, np.eye(depth), 0.0), path)
        model = zoo.Model(path.stem, path, contract)
        scorer = Scorer(model, threshold=0.0, processor=Processor("cpu"))
    rows, labels = [], []
    counts = {}
    for name in (*RAINY, *CLEAN):
        paths = pictures_in(data / name)
        paths = paths[:: max(1, -(-len(paths) // most))]
        counts[name] = len(paths)
        for number, path in enumerate(paths):
            rows.append(scorer.evidence(image.read(path).pixels)[0])
            labels.append(name in RAINY)
            if progress is not None:
                progress(name, number + 1, len(paths))
    features, rainy = np.asarray(rows, np.float64), np.asarray(labels)
    folds = np.arange(len(rainy)) % 5
    held_out = np.empty(len(rainy))
    for fold in range(5):
        weights, bias = fit(features[folds != fold], rainy[folds != fold])
        held_out[folds == fold] = features[folds == fold] @ weights + bias
    weights, bias = fit(features, rainy)
    # The threshold is that of pictures which were not fitted on.
    threshold = float(np.quantile(held_out[~rainy], 1 - FALSE_ALARMS))
    card = {
        "made_by": "python -m unrain.lab.score fit --data DATA",
        "from": SOURCE,
        "penalty": PENALTY,
        "pictures": counts,
        "cross_validated_auc": round(auc(held_out[rainy], held_out[~rainy]), 4),
        **contract,
        "threshold": round(float(100 / (1 + np.exp(-threshold))), 1),
    }
    made = detector(network, weights[:, None], bias)
    files.write(made.SerializeToString(deterministic=True), out)
    files.write((json.dumps(card, indent=2) + "\n").encode(), out.with_suffix(".json"))
    return card


def _deepest(network: onnx.ModelProto) -> tuple[str, int]:
    """Return the name of the deepest features, and their number."""
    depths = {weights.name.removesuffix(".half"): weights.dims for weights in network.graph.initializer}
    for node in network.graph.node:
        # The first thing that grows again takes them.
        if node.op_type == "Conv" and node.input[1].startswith("net.ups."):
            return node.input[0], int(depths[node.input[1]][1])
    raise UnrainError("the network has no layer net.ups: give one of the family RDMC-lite")


@dataclass(frozen=True)
class Row:
    """How well one set of clean pictures is told from one of rain.

    Attributes:
        rainy: The set of rain.
        clean: The set without.
        auc: See `auc`.
        found: Share of the rainy ones that are called rainy.
        false: Share of the clean ones that are.
    """

    rainy: str
    clean: str
    auc: float
    found: float
    false: float


def compare(scores: Mapping[str, Sequence[float]], rainy: Sequence[str], threshold: float) -> list[Row]:
    """Compare every set of rain with every set without, and with all of them together."""
    clean = [name for name in scores if name not in rainy]
    rows = []
    for wet in rainy:
        for dry, values in [
            *((name, scores[name]) for name in clean),
            ("all of them", [value for name in clean for value in scores[name]]),
        ]:
            rows.append(
                Row(
                    wet,
                    dry,
                    auc(scores[wet], values),
                    float(np.mean(np.asarray(scores[wet]) >= threshold)),
                    float(np.mean(np.asarray(values) >= threshold)),
                )
            )
    return rows


app = App(
    name="python -m unrain.lab.score", help="Make the rain detector, or measure it.", help_format="plaintext"
)


@app.command(name="fit")
def fit_command(*, data: Path, output: Annotated[Path, Parameter(alias="-o")] = DETECTOR) -> None:
    """Fit the detector.

    Args:
        data: Folder with the data sets.
        output: The ONNX file to write; its card is written beside it.
    """
    with Bar() as bar:
        print_line(json.dumps(make_detector(data, output, progress=bar.step)))


@app.command
def table(
    *, rainy: tuple[Path, ...], clean: tuple[Path, ...], plot: Path | None = None, worst: int = 0
) -> None:
    """Print how well rain is told from its absence, for folders of pictures.

    Args:
        rainy: A folder of pictures of rain; may be given several times.
        clean: A folder of pictures without; may be given several times.
        plot: Write the ROC curves into this SVG file.
        worst: Name so many of the rainy pictures with the lowest and the clean ones with the highest scores.
    """
    scorer = Scorer(processor=Processor("cpu"))
    scores: dict[str, list[float]] = {}
    ranked: list[tuple[float, bool, Path]] = []
    with Bar() as bar:
        for folder in (*rainy, *clean):
            paths = pictures_in(folder)
            found = scores.setdefault(str(folder), [])
            for number, path in enumerate(paths):
                found.append(scorer(image.read(path).pixels).score)
                ranked.append((found[-1], folder in rainy, path))
                bar.step(str(folder), number + 1, len(paths))
    print_line(f"threshold {scorer.threshold:g}")
    print_line("| rain | clean | pictures | AUC | rain found | false alarms |")
    print_line("|---|---|---|---|---|---|")
    wet = [str(folder) for folder in rainy]
    for row in compare(scores, wet, scorer.threshold):
        count = f"{len(scores[row.rainy])}, {len(scores.get(row.clean, []))}" if row.clean in scores else ""
        print_line(
            f"| {row.rainy} | {row.clean} | {count} | {row.auc:.3f} | {row.found:.0%} | {row.false:.0%} |"
        )
    for label, chosen in (
        ("rainy, lowest", sorted(item for item in ranked if item[1])[:worst]),
        ("clean, highest", sorted((item for item in ranked if not item[1]), reverse=True)[:worst]),
    ):
        for score, _, path in chosen:
            print_line(f"{label}: {score:5.1f} {path}")
    if plot is not None:
        files.write(_plot(scores, wet), plot)


def _plot(scores: Mapping[str, Sequence[float]], rainy: Sequence[str]) -> bytes:
    """Draw the ROC curve of each set of rain against all clean ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    dry = [value for name, values in scores.items() if name not in rainy for value in values]
    for name in rainy:
        across, up = roc(scores[name], dry)
        axes.plot(across, up, label=f"{name} (AUC {auc(scores[name], dry):.3f})", drawstyle="steps-post")
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axes.set(xlabel="clean pictures called rainy", ylabel="rainy pictures called rainy", aspect="equal")
    axes.legend(loc="lower right", frameon=False, fontsize="small")
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


if __name__ == "__main__":
    run_module(app)
