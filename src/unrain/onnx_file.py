"""What an ONNX file says about itself, read before the library that runs it: no other file may be pulled in.

An ONNX file is a protocol buffer, messages of numbered fields. Only the messages that lead to tensors are
entered; any other field is skipped by its length.
Source: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from collections.abc import Iterator

# Of each message the fields that are entered, and what they hold.
_ENTERED = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_OP_TYPE = 4
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_GRAPH, _METADATA = 7, 14
_INITIALISER, _INPUT, _NAME, _TENSOR_NAME = 5, 11, 1, 8
_VARINT, _EIGHT_BYTES, _MESSAGE, _FOUR_BYTES = 0, 1, 2, 5
_MOST_FIELDS = 1_000_000
_DEEPEST = 100
_LOOPS = {b"Loop", b"Scan"}


def has_loops(data: bytes) -> bool:
    """Check that a model keeps all its weights inside, and tell whether it repeats anything in a loop.

    Args:
        data: The whole file.

    Raises:
        ValueError: It is no ONNX file, or one that names other files for its weights.
    """
    loops = False
    fields = 0
    stack = [("model", 0, len(data), 0)]
    while stack:
        message, start, end, depth = stack.pop()
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        for number, kind, value, stop in _fields(data, start, end):
            fields += 1
            if fields > _MOST_FIELDS:
                raise ValueError("more parts than any network has")
            outside = number == _EXTERNAL_DATA or (number == _DATA_LOCATION and (kind != _VARINT or value))
            if message == "tensor" and outside:
                raise ValueError("its weights are in another file")
            if kind != _MESSAGE:
                continue
            loops = loops or (message == "node" and number == _OP_TYPE and data[value:stop] in _LOOPS)
            if (inner := _ENTERED[message].get(number)) is not None:
                stack.append((inner, value, stop, depth + 1))
    return loops


def metadata(data: bytes) -> dict[str, str]:
    """Return the entries that a model carries for programs.

    Args:
        data: The whole file, which `has_loops` has checked.

    Raises:
        ValueError: It is no ONNX file.
    """
    entries = {}
    for number, kind, value, stop in _fields(data, 0, len(data)):
        if number == _METADATA and kind == _MESSAGE:
            entry = {field: data[start:end] for field, _, start, end in _fields(data, value, stop)}
            entries[entry.get(1, b"").decode()] = entry.get(2, b"").decode()
    return entries


def input_names(data: bytes) -> list[str]:
    """Return the names of a model's inputs, also of those that nothing uses.

    Args:
        data: The whole file, which `has_loops` has checked.

    Raises:
        ValueError: It is no ONNX file.
    """
    inputs, weights = [], set()
    for number, kind, value, stop in _fields(data, 0, len(data)):
        if number != _GRAPH or kind != _MESSAGE:
            continue
        for part, how, start, end in _fields(data, value, stop):
            if how == _MESSAGE and part in (_INPUT, _INITIALISER):
                key = _NAME if part == _INPUT else _TENSOR_NAME
                inner = _fields(data, start, end)
                names = [data[at:last].decode() for field, _, at, last in inner if field == key]
                if part == _INPUT:
                    inputs += names
                else:
                    weights.update(names)
    return [name for name in inputs if name not in weights]


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Give the number and kind of each field, its value or where it starts, and where it ends."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at, end)
        elif kind == _MESSAGE:
            length, value = _varint(data, at, end)
            at = value + length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            value = at
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError("no ONNX file")
        if at > end or not 0 < number < 1 << 29:
            raise ValueError("no ONNX file")
        yield number, kind, value, at


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, and return it with where it ends."""
    value = 0
    for place in range(min(10, end - at)):
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("no ONNX file")
