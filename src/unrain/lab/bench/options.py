"""The options of `unrain bench` and its sub-commands; importing them costs nothing.

They are the parameters of the commands: the attributes' docstrings are what `--help` says.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter, validators

from unrain.cli.derain import AUTO
from unrain.devices import Processor

SIZE = "481x321"
CPU = Processor("cpu")
SIZES = (SIZE, "1280x720", "1920x1080")
Side = Literal["native"] | int
Levels = Literal["auto"] | int
LONG_SIDES: tuple[Side, ...] = (640, 1280, 2560, 4000, "native")
SHORTEST = 32
Rain = Literal["scaled", "fine"]
RAINS: tuple[Rain, ...] = ("scaled", "fine")
MIN_ROUNDS = 5
PICTURES = 20
WIDTH = 360

_Count = Parameter(validator=validators.Number(gte=0))


@dataclass(frozen=True)
class CandidateOptions:
    """What is run, and how.

    Attributes:
        peer: Other people's weights for one of our networks, as NETWORK:FILE, for example
            prenet:weights.safetensors; may be given several times.
        recursions: How often a network runs on each picture, instead of its own number; may be given several
            times, each is measured.
        threads: Processor threads, 0 for all.
    """

    peer: tuple[str, ...] = ()
    recursions: tuple[int, ...] = ()
    threads: Annotated[int, _Count] = 0


@dataclass(frozen=True)
class RunOptions(CandidateOptions):
    """What runs it.

    Attributes:
        device: What exported models run on, see unrain devices. Checkpoints run in PyTorch: on the CPU unless
            this is torch:DEVICE.
        precision: What they compute in: fp32, fp16 or bf16; auto for what the device is best at.
    """

    device: str = "cpu"
    precision: str = "auto"

    @property
    def processor(self) -> Processor:
        """The three options on it."""
        return Processor(self.device, self.precision, self.threads)


@dataclass(frozen=True)
class SuiteOptions(RunOptions):
    """What is run on which test sets.

    Attributes:
        data: Folder with the data sets; not needed with --real alone.
        suite: Test set of pairs below DATA, or a folder of clean photographs, which are compared with
            themselves; may be given several times. By default Rain100L, Rain100H, Rain800 and Kodak24, those
            of them that exist.
        real: Folder of real rain, without ground truth, below DATA or anywhere; may be given several times.
    """

    data: Path | None = None
    suite: tuple[str, ...] = ()
    real: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchOptions(SuiteOptions):
    """What `unrain bench` measures, and where it writes.

    Attributes:
        metric: Measure also rgb (PSNR and SSIM of all channels), lpips, niqe, brisque, streaks or chroma
            (change of colour); may be given several times. lpips, niqe and brisque need a file, as NAME:PATH
            or in UNRAIN_LPIPS, UNRAIN_NIQE and UNRAIN_BRISQUE. Real rain has streaks by default, and niqe
            and brisque if their files are named.
        truncate: Also score the results truncated to 8 bits, as the script of PReNet's authors does.
        cost: Also print weights, multiplications, and the peak memory of a process that runs the model once.
        size: WIDTHxHEIGHT of the picture that memory is measured on.
        published: Also list what others have published for these sets, with the sources.
        card: Write the scores into the models' cards.
        readme: Then write the scores of all models' cards into this README, between its two marks.
        csv: Print the scores as CSV.
        report: Also write an HTML page: tables with costs, plots, and the best, median and worst pictures.
        fresh: Measure again what an earlier run has measured.
        json: Print the scores as JSON.
    """

    metric: tuple[str, ...] = ()
    truncate: bool = False
    cost: bool = False
    size: str = SIZE
    published: bool = False
    card: bool = False
    readme: Path | None = None
    csv: bool = False
    report: Path | None = None
    fresh: bool = False
    json: bool = False


@dataclass(frozen=True)
class SheetOptions(SuiteOptions):
    """What a contact sheet shows.

    Attributes:
        pictures: How many rows, evenly spread over the set.
        width: Width of each picture on the sheet, in pixels.
    """

    pictures: Annotated[int, Parameter(validator=validators.Number(gte=1))] = PICTURES
    width: Annotated[int, Parameter(validator=validators.Number(gte=32))] = WIDTH


@dataclass(frozen=True)
class DeviceOptions(CandidateOptions):
    """On which devices.

    Attributes:
        device: What exported models run on, see unrain devices, and after a slash what it computes in:
            openvino/bf16; may be given several times. Checkpoints run in PyTorch: on the CPU unless the first
            is torch:DEVICE.
    """

    device: tuple[str, ...] = ("cpu",)

    def processors(self) -> list[Processor]:
        """Return what was asked for."""
        named = (text.partition("/") for text in self.device)
        return [Processor(device, precision or "auto", self.threads) for device, _, precision in named]


@dataclass(frozen=True)
class SpeedOptions(DeviceOptions):
    """What `unrain bench speed` times.

    Attributes:
        levels: How many sizes of a picture are looked at, each half of the one before: 1 for full size only,
            or auto.
        size: Picture size as WIDTHxHEIGHT; may be given several times.
        photo: Picture to derain, cut and scaled to each size; may be given several times, the mean counts. By
            default one of noise, on which a model does everywhere all that it can.
        rounds: How often each model is timed; the median counts.
        cost: Also print weights, and the peak memory of a process that runs the model once.
        json: Print the times as JSON.
    """

    levels: Levels = 1
    size: tuple[str, ...] = SIZES
    photo: tuple[Path, ...] = ()
    rounds: Annotated[int, Parameter(validator=validators.Number(gte=MIN_ROUNDS))] = MIN_ROUNDS
    cost: bool = False
    json: bool = False


@dataclass(frozen=True)
class TaskOptions(RunOptions):
    """What `unrain bench tasks` measures, and where it writes.

    Attributes:
        detect: A YOLO of COCO's 80 classes: FILE.onnx or FILE.cfg+FILE.weights; may be given several times.
        segment: A network of PASCAL VOC's 21 classes: FILE.tflite or FILE.onnx; may be given several times.
        suite: Test set below DATA: a folder with images, boxes (YOLO's lines), and masks in semantic (COCO's
            panoptic numbers) or labels (CamVid's).
        rain: Strength of the rain: none, light, middling or heavy; may be given several times, all by
            default.
        seed: Another number puts the drops elsewhere.
        only_rainy: Leave pictures alone in which it does not rain: those with a lower score (unrain score).
        fresh: Measure again what an earlier run has measured.
        csv: Print the scores as CSV.
        json: Print the scores as JSON.
    """

    detect: tuple[str, ...] = ()
    segment: tuple[Path, ...] = ()
    suite: str = "coco"
    rain: tuple[str, ...] = ()
    seed: Annotated[int, _Count] = 0
    only_rainy: Annotated[
        float | None, Parameter(validator=validators.Number(gte=AUTO, lte=100), show_default="all pictures")
    ] = None
    fresh: bool = False
    csv: bool = False
    json: bool = False


@dataclass(frozen=True)
class SizesOptions(RunOptions):
    """What `unrain bench sizes` measures, and where it writes.

    Attributes:
        size: Long side that the photographs are reduced to, in pixels; or native, for those larger than the
            largest of these as they are. May be given several times.
        levels: How many sizes of a picture the models look at, each half of the one before: 1 for full size
            only, or auto; may be given several times, each is measured.
        rain: Rain to draw: scaled (as large as the picture is) or fine (as in 640 pixels); may be given
            several times, both by default.
        peer_side: The long side up to which peers work at full size; larger ones are left out.
        seed: Another number gives other rain.
        fresh: Measure again what an earlier run has measured.
        csv: Print the table as CSV.
        report: Also write an HTML page with the table and plots of gain against size.
        json: Print the table as JSON.
    """

    size: tuple[Side, ...] = LONG_SIDES
    levels: tuple[Levels, ...] = ("auto",)
    rain: tuple[Rain, ...] = RAINS
    peer_side: Annotated[int, _Count] = 1280
    seed: Annotated[int, _Count] = 0
    fresh: bool = False
    csv: bool = False
    report: Path | None = None
    json: bool = False


@dataclass(frozen=True)
class FidelityOptions(DeviceOptions):
    """What `unrain bench fidelity` compares with the CPU in fp32, and on what.

    Attributes:
        data: Folder with the data sets; not needed with --real alone.
        suite: Test set of pairs below DATA; may be given several times. By default Rain100L, Rain100H,
            Rain800 and Kodak24, those of them that exist.
        real: Folder of real rain, below DATA or anywhere; may be given several times.
        card: Write the result into the models' cards.
        json: Print the result as JSON.
    """

    device: tuple[str, ...] = ("openvino",)
    data: Path | None = None
    suite: tuple[str, ...] = ()
    real: tuple[str, ...] = ()
    card: bool = False
    json: bool = False
