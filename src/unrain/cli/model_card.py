"""A model's card as a Markdown page, with the front matter that model hubs read."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from unrain import zoo

if TYPE_CHECKING:
    from unrain.zoo import Model

_TITLES = {
    "rain100l": "Rain100L",
    "rain100h": "Rain100H",
    "rain800": "Rain800",
    "clean/kodak24": "Kodak24, without rain",
}


def as_markdown(model: "Model") -> Iterator[str]:
    """Give the lines of the page.

    Args:
        model: Its card may lack anything.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: An entry is not what `unrain export` writes.
    """
    card = model.card
    scores = {key: _Score(key, value) for key, value in (card.get("scores") or {}).items()}
    yield from _front_matter(model, scores)
    yield f"# {model.name}"
    yield ""
    if card.get("summary"):
        yield str(card["summary"])
        yield ""
    added = model.path.parent != zoo.WEIGHTS
    yield from ("```sh", *([f"unrain models add {model.path.name}"] if added else []))
    yield from (f"unrain photo.jpg --model {model.name}", "```", "")
    yield from _facts(model)
    if scores:
        yield from ("## Scores", "", "| test set | recursions | pictures | PSNR (Y) | SSIM (Y) | seconds |")
        yield "|---|---|---|---|---|---|"
        for score in scores.values():
            yield score.row
        yield ""
        if card.get("scores_by"):
            yield f"Measured by `{card['scores_by']}` at commit {card.get('scores_commit') or 'unknown'}."
            yield ""
    if card.get("training_data"):
        yield from ("## Training data", "", *(f"- {one}" for one in card["training_data"]), "")
    made = list(_made(card))
    if made:
        yield from ("## How it was made", "", *made, "")
    if card.get("note"):
        yield from (str(card["note"]), "")


class _Score:
    """A score of a card: a test set, a number of recursions, and what was measured."""

    def __init__(self, key: str, values: dict[str, Any]) -> None:
        suite, _, self.recursions = key.rpartition(" T")
        self.suite = suite or key
        self.title = _TITLES.get(self.suite.removesuffix("/test"), self.suite)
        self.psnr, self.ssim = float(values["psnr"]), float(values["ssim"])
        self.pictures, self.seconds = values.get("pictures", "-"), values.get("seconds", "-")

    @property
    def row(self) -> str:
        """Return its row of the table."""
        cells = (
            *(self.title, self.recursions or "-", self.pictures),
            *(f"{self.psnr:.2f}", f"{self.ssim:.4f}", self.seconds),
        )
        return f"| {' | '.join(map(str, cells))} |"


def _front_matter(model: "Model", scores: dict[str, _Score]) -> Iterator[str]:
    """Give the header between two lines of dashes; strings are JSON's, which YAML reads."""
    yield from ("---", "library_name: unrain", "pipeline_tag: image-to-image")
    yield "tags: [deraining, rain-removal, image-restoration, onnx]"
    if model.card.get("licence"):
        yield f"license: {json.dumps(str(model.card['licence']).lower())}"
    own = [one for one in scores.values() if one.recursions == str(model.card.get("recursions", 1))]
    if own:
        yield from ("model-index:", f"- name: {json.dumps(model.name)}", "  results:")
        for score in own:
            yield "  - task: {type: image-to-image, name: Deraining}"
            yield f"    dataset: {{type: {json.dumps(score.suite)}, name: {json.dumps(score.title)}}}"
            yield "    metrics:"
            yield f"    - {{type: psnr, value: {score.psnr:.2f}, name: PSNR (Y)}}"
            yield f"    - {{type: ssim, value: {score.ssim:.4f}, name: SSIM (Y)}}"
    yield from ("---", "")


def _facts(model: "Model") -> Iterator[str]:
    card = model.card
    parameters = card.get("parameters")
    arguments = ", ".join(f"{key} = {value}" for key, value in (card.get("arguments") or {}).items())
    facts = {
        "network": card.get("network"),
        "package of the network": card.get("network_package"),
        "arguments": arguments,
        "parameters": f"{parameters:,}" if isinstance(parameters, int) else None,
        "file": f"{model.path.stat().st_size / 1e6:.1f} MB, ONNX",
        "weights stored in": f"{card['weights_stored']} precision" if "weights_stored" in card else None,
        "recursions": card.get("recursions"),
        "height and width are multiples of": card.get("multiple"),
        "context that a tile needs": f"{card['halo']} pixels" if "halo" in card else None,
        "licence": card.get("licence"),
    }
    yield from ("| | |", "|---|---|", *(f"| {label} | {fact} |" for label, fact in facts.items() if fact), "")


def _made(card: dict[str, Any]) -> Iterator[str]:
    """Give a line for each stage of training, the last one first."""
    for stage in zoo.stages(card):
        if not stage.get("recipe"):
            return
        took = f", {stage['wall_time'] / 60:.0f} minutes" if stage.get("wall_time") else ""
        machine = f" on {stage['hardware']}" if stage.get("hardware") else ""
        computed = f" in {stage['precision']}" if stage.get("precision") else ""
        yield f"- `{stage['recipe']}`: {stage.get('steps', 0):,} steps{took}{machine}{computed}"
