"""Damaged and malicious models and cards, through `unrain.derain` and on the command line."""

import json
import re
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from attack import seeds
from attack.mutate import mutant
from attack.process import faults, unrain, watched
from toys import CONTRACT

_BATCH = 40
# A foreign model may think for a while before its time is up.
_PATIENCE = 60.0
_WORKER = """
import importlib.util
import sys
import numpy as np
import unrain
# A library that is slower to open a file meets every tenth of them.
others = ["openvino"] if importlib.util.find_spec("openvino") else ["cpu"]
picture = np.random.default_rng(0).random((24, 32, 3), np.float32)
for number, path in enumerate(sys.argv[1:]):
    print("start", number, flush=True)
    try:
        device = others[0] if number % 10 == 9 else "cpu"
        result = unrain.derain(picture, model=path, device=device, threads=1)
        good = result.shape == picture.shape and bool(np.isfinite(result).all())
        print("result" if good else "nonsense", number, flush=True)
    except unrain.UnrainError as error:
        print("refused" if len(str(error).splitlines()) == 1 else "lines", number, flush=True)
"""

# What becomes of a malicious model, unless it is to be refused; None where either will do.
_RIGHT = {"same": "result", **dict.fromkeys(("infinite", "double", "huge", "metadata-list"))}
_RIGHT |= dict.fromkeys(("card-recursions-True", "card-recursive-no", "card-surrogate", "card-large"))


def attack(campaign):
    """The malicious ones first, then batches of mutants of a sound model and its card."""
    sound, card = seeds.model()
    evil = malicious()
    names = campaign.random.sample(list(evil), campaign.room(len(evil)))
    _batch(campaign, {name: evil[name] for name in names}, right=lambda name: _RIGHT.get(name, "refused"))
    for name in names[:: 1 if campaign.limit > 1000 else 6]:
        if campaign.more():
            _command(campaign, name, *evil[name])
    while campaign.more():
        cases = {}
        for number in range(campaign.room(_BATCH)):
            data, text = sound, card
            if number % 2:
                text = (
                    mutant(campaign.random, card, [card, sound])
                    if number % 4 == 1
                    else _value(campaign, card)
                )
            else:
                data = mutant(campaign.random, sound, [sound, card])
            cases[f"m{number:03}"] = (data, text)
        _batch(campaign, cases)


def malicious():
    """Models that no damage by chance would make: the content of each file and of its card, if it has one."""
    node, array = helper.make_node, numpy_helper.from_array
    same = node("Identity", ["rainy"], ["derained"])

    def tensor(kind=TensorProto.FLOAT, make=helper.make_tensor_value_info):
        return make("derained", kind, None)

    # fmt: off
    models = {
        "same": ([same],),
        "nan": ([node("Neg", ["rainy"], ["minus"]), node("Sqrt", ["minus"], ["derained"])],),
        "infinite": ([node("Div", ["rainy", "zero"], ["derained"])], [array(np.float32(0), "zero")]),
        "half-size": ([node("MaxPool", ["rainy"], ["derained"], kernel_shape=[2, 2], strides=[2, 2])],),
        "no-rank": ([node("ReduceMean", ["rainy"], ["derained"], keepdims=0)], (), {"output": tensor()}),
        "sequence": (
            [node("SequenceConstruct", ["rainy"], ["derained"])], (),
            {"output": tensor(make=helper.make_tensor_sequence_value_info)},
        ),
        "double": (
            [node("Cast", ["rainy"], ["derained"], to=TensorProto.DOUBLE)], (),
            {"output": tensor(TensorProto.DOUBLE)},
        ),
        "text-input": ([same], (), {"kind": TensorProto.STRING}),
        "huge": (
            [node("Expand", ["rainy", "shape"], ["b"]), node("ReduceMean", ["b"], ["derained"], axes=[0])],
            [array(np.array([100_000, 3, 24, 32], np.int64), "shape")],
        ),
        "loop": _loop(),
        "external": _external("../../../../etc/passwd"),
        "external-absolute": _external("/etc/passwd"),
        "metadata-deep": ([same], (), {"metadata": "[" * 200_000}),
        "metadata-list": ([same], (), {"metadata": "[1]"}),
        "metadata-infinite": ([same], (), {"metadata": json.dumps({**CONTRACT, "halo": float("inf")})}),
    }
    cards = {
        "deep": b'{"scores": ' + b"[" * 200_000, "list": b"[]", "latin": '{"n\xe4me": 1}'.encode("latin-1"),
        "surrogate": b'{"name": "\\ud800", "summary": "\\u001b[31m"}',
        "digits": b'{"multiple": ' + b"9" * 5000 + b"}",
        "large": b'{"summary": "' + b"a" * 50_000_000 + b'"}',
    }
    values = {
        "multiple": (float("inf"), 10**30, 1 << 31), "halo": (float("inf"), 1 << 40, float("nan")),
        "recursions": (10**18, True), "levels": (10**9,), "recursive": ("no",),
    }
    # fmt: on
    for key, strange in values.items():
        for value in strange:
            cards[f"{key}-{str(value)[:5]}"] = json.dumps({**CONTRACT, key: value}).encode()
    found = {}
    for name, (nodes, *constants) in models.items():
        more = constants.pop() if len(constants) == 2 else {}
        found[name] = (seeds.network(nodes, *constants, **more).SerializeToString(), None)
    return found | {f"card-{name}": (found["same"][0], card) for name, card in cards.items()}


def _loop():
    """What never comes to an end."""
    port = helper.make_tensor_value_info
    nodes = [helper.make_node("Identity", ["go"], ["yes"]), helper.make_node("Identity", ["x"], ["y"])]
    takes = [
        port("i", TensorProto.INT64, []),
        port("go", TensorProto.BOOL, []),
        port("x", TensorProto.FLOAT, None),
    ]
    gives = [port("yes", TensorProto.BOOL, []), port("y", TensorProto.FLOAT, None)]
    body = helper.make_graph(nodes, "body", takes, gives)
    rounds, first = np.int64(2**62), np.bool_(True)
    constants = [numpy_helper.from_array(rounds, "rounds"), numpy_helper.from_array(first, "first")]
    return [helper.make_node("Loop", ["rounds", "first", "rainy"], ["derained"], body=body)], constants


def _external(location):
    """A weight that lies in a file which is none of the model's business."""
    weight = onnx.TensorProto(
        name="weight", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value=location)
    weight.external_data.add(key="length", value="16")
    nodes = [
        helper.make_node("ReduceMax", ["weight"], ["top"], keepdims=0),
        helper.make_node("Add", ["rainy", "top"], ["derained"]),
    ]
    return nodes, [weight]


def _value(campaign, card):
    """Put nonsense in the place of one of the card's values."""
    table = json.loads(card)
    strange = [None, [], {}, "", "x", -1, 0, 0.5, 1e308, float("inf"), float("nan"), 2**70, True, [[1]]]
    table[campaign.random.choice(list(table))] = campaign.random.choice(strange)
    return json.dumps(table).encode()


def _batch(campaign, cases, *, right=lambda name: None):
    """Derain with each of some models and judge; after a crash or hang go on behind the guilty one."""
    left = dict(cases)
    while left:
        fates, ran = _told(campaign, left)
        reached = list(left)[: max(len(fates), 1)]
        for name, fate in zip(reached, fates or ["start"], strict=True):
            kept = _files(name, *left.pop(name))
            campaign.count(cases=1, refused=int(fate == "refused"), results=int(fate == "result"))
            if fate in ("nonsense", "lines"):
                what = "NaN or another size" if fate == "nonsense" else "more than one line"
                kind = "false success" if fate == "nonsense" else "stray line"
                campaign.fault(kind, f"{name}\n{what}", kept)
            elif right(name) is not None and fate not in (right(name), "start"):
                campaign.fault("false success", f"{name} is {fate}", kept)
            if fate == "start" or name == reached[-1]:
                for kind, detail in faults(ran, megabytes=1000, cpu=_PATIENCE + len(cases), codes={0}):
                    campaign.fault(kind, detail, kept if fate == "start" else {})


def _told(campaign, cases):
    """What the worker says of each case until it ends; the last may be a mere `start`."""
    folder = campaign.fresh("models")
    for name, content in cases.items():
        for file, data in _files(name, *content).items():
            (folder / file).write_bytes(data)
    paths = [str(folder / f"{name}.onnx") for name in cases]
    ran = watched([sys.executable, "-c", _WORKER, *paths], patience=_PATIENCE + len(cases))
    words = [line.split() for line in ran.out.splitlines() if re.fullmatch(r"[a-z]+ \d+", line)]
    fates = {}
    for word, number in words:
        fates[number] = word
    return list(fates.values()), ran


def _command(campaign, name, data, card):
    """Use a model on the command line too, where its own words would show."""
    folder = campaign.fresh("command")
    for file, content in _files(name, data, card).items():
        (folder / file).write_bytes(content)
    (folder / "a.png").write_bytes(seeds.pictures()["rgb.png"])
    model = folder / f"{name}.onnx"
    for words in (["models", model], [folder / "a.png", "--threads", "1", "--model", model]):
        ran = watched(unrain(*words), patience=_PATIENCE)
        campaign.count(cases=1, refused=int(ran.code in (1, 2)), results=int(ran.code == 0))
        for kind, detail in faults(ran, cpu=_PATIENCE, megabytes=1000):
            campaign.fault(kind, f"unrain {name}\n{detail}", _files(name, data, card))


def _files(name, data, card):
    return {f"{name}.onnx": data, **({} if card is None else {f"{name}.json": card})}
