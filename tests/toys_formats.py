"""Files in formats whose encoders are not here: a HEIC of another program, a DNG written tag by tag."""

import base64
import io
import struct

import numpy as np

# pillow-heif 1.4 (libheif, x265) of a JPEG of 64 x 48 with EXIF, as a phone does it: stored lying, the
# container and EXIF (orientation 6) both say how to turn it. Make "Regen"; red lights at its bottom.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAchtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ADRpbG9jAAAAAERAAAIAAQAAAAAB7AABAAAAAAAAAz4AAgAAAAAFKgABAAAAAAAAADYAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAA"
    "AAABAABodmMxAAAAABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABB2lwcnAAAADmaXBjbwAAAHZodmNDAQNwAAAA"
    "kAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq"
    "5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xh"
    "cAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAAAlpcm90AwAAABlpcG1hAAAAAAAAAAEA"
    "AQaBAgMFhIYAAAAaaXJlZgAAAAAAAAAOY2RzYwACAAEAAQAAA3xtZGF0AAADOigBrxOAfJLacHtUKz4qysEKJe2T0oVvVOMLB5Ha"
    "bblmAVauOBcKzVS2rVw0ngWJ3k17UjXZCHOrKJszQ50d2vkBfuUvsq0ELmU9V3w3boppA8/KsRRDHWF+kdbsdqrf3DohCObRJo48"
    "KKyCxYJqK7uYa68uXrasYYw5NZ3fmk0hiKfYTQKNETAyNkJea5n7oISfdfJd2vzRRha7RsKv9OPYpN4rEVpmHbvEf6CsEg17pjNW"
    "kb7R2+ilFuDeeiM9MCwnv9UVhcVCwhTn4WGYRydYl4K6Kty6jMQLt83M3J9rXrpZ/QmfM/okcEcXKnDPj9ZbtIIqXNtzjx1gVS69"
    "uoG2zuWAplBFf1Kax3INBPHNkump3SzqebtQB5BTUt7RNzMEoawCvL3xp/KzYDowi38ZgBuVRrM0F32E35tVr3sPYloLRw+ISJ3N"
    "WIgL9Dht4xsJh4s+++9RvUCq77yW1jmvYywbUhzow6z8NAV2QGZ4ZsiMnorIsvEKPSjvM8QC65MHOCkmqG3l3J5g234EqKvHtBVS"
    "ILxcAZE/9eYIo5Ju0bINVV1bu8RlreIT79lyEldl7EFturzo6PWdbSbixoq3kPddVhskJajSFGS8Xhv/XwC1uw8HUkuf+8IymC5U"
    "llnNSlesbBWpBiu5oH1srdxw5XSarJHsy7lxWTYU/rd0CFf4brtNjgoRldAtLm5NoCZchy97D3GXAlHLl/V+jZNbYSO6CHsa3RiK"
    "L4S1naIIHxv7LB6nsCkqrLxmoL+woF2AT8chqqcE4kFPo7kLzmIZCX2z5l4HqG5YmdfhftywJEDIPoNyLVbcG4dWoLCCpoZ13Yrd"
    "j+r23B760oBHG0Q4HX5oNN7V8hApP2qSRX0sg5pFcIbA6/The/TZH2DkKWjHT0srobQ9sv8pfPiLzPu3Wzf4lOveIsi8kj3hPJ4v"
    "uxpMURJuzNfmVFlgh/uhQshTMVIWOKYnfKufCFjRkyCx/6gOZsezpqwT6sOhE0e+GDqDCWIvdkAhsr8RJ7aBk1HpUStprH3+EFv1"
    "oFHFajfZbnqAP1/zofr+GHryz4+Cezf+Hzlj2CGfO296bkW7SMknYPkYFWCA53gAAAAGRXhpZgAATU0AKgAAAAgAAgEPAAIAAAAG"
    "AAAAJgESAAMAAAABAAYAAAAAAABSZWdlbgA="
)

# `heif-enc -q 70 -b 10` of ramps of 64 x 64: red across, green down; opaque in the left half only.
DEEP_HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAkRtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "AA5waXRtAAAAAAABAAAANGlsb2MAAAAAREAAAgABAAAAAAJoAAEAAAAAAAAApwACAAAAAAMPAAEAAAAAAAAAGQAAADhpaW5mAAAA"
    "AAACAAAAFWluZmUCAAAAAAEAAGh2YzEAAAAAFWluZmUCAAAAAAIAAGh2YzEAAAABg2lwcnAAAAFeaXBjbwAAAHZodmNDAQQIAAAA"
    "AAAAAAAAHvAA/P36+gAADwMgAAEAF0ABDAH//wQIAAADAJ24AAADAAAeugJAIQABACpCAQEECAAAAwCduAAAAwAAHqAggQTZbqSS"
    "mubgQEDAgAAAAwCAAAADAIQiAAEAB0QBwXKwIkAAAAAUaXNwZQAAAAAAAABAAAAAQAAAABBwaXhpAAAAAAMKCgoAAABzaHZjQwEE"
    "CAAAAAAAAAAAAB7wAPz8+voAAA8DIAABABdAAQwB//8ECAAAAwCd+AAAAwAAHroCQCEAAQAnQgEBBAgAAAMAnfgAAAMAAB7AggQT"
    "ZbqSSmubAgAAAwACAAADAAIQIgABAAdEAcFysCJAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAOcGl4aQAAAAABCgAAACdhdXhDAAAA"
    "AHVybjptcGVnOmhldmM6MjAxNTphdXhpZDoxAAAAAB1pcG1hAAAAAAAAAAIAAQOBAoMAAgSEBYaHAAAAGmlyZWYAAAAAAAAADmF1"
    "eGwAAgABAAEAAADIbWRhdAAAAKMoAa8O4JQ/aknWWQDYwRn6frohJ6Tv/BO9fSNI+Jz3uDQTD9PTa2VSMfykWaaS+wbXJnx/J/i9"
    "6T87X6dY5/3pfSMJblnji/uVtlqaxLCZE053cdbmEHrmz3G2FHuHSwF4aypNnxfrZ719d4tXXmlPz6/p9I8kmEFDb01c6FbsASlT"
    "4CtcqB4vtZwoO4mCYTe+GG4Wsn8Ki1+3r5UL3zL89FkUAAAAFSgBrh3AVSfyGb/lrGxMP/vnOFlVwA=="
)


def dng(mosaic, white_balance=(0.5, 1.0, 0.5), orientation=1):
    """A DNG of one uncompressed 16-bit mosaic in the pattern RGGB.

    Args:
        mosaic: H x W, uint16, linear.
        white_balance: What the camera saw of a grey thing, in red, green and blue.
        orientation: As in EXIF.
    """
    height, width = mosaic.shape
    rationals = [(int(value * 10_000), 10_000) for value in white_balance]
    identity = [(int(one), 1) for one in np.eye(3).ravel()]
    entries = {
        254: (4, [0]),
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [16]),
        259: (3, [1]),
        262: (3, [32803]),
        271: (2, b"Regen\0"),
        272: (2, b"Toy camera\0"),
        274: (3, [orientation]),
        277: (3, [1]),
        278: (4, [height]),
        279: (4, [mosaic.nbytes]),
        33421: (3, [2, 2]),
        33422: (1, bytes([0, 1, 1, 2])),
        50706: (1, bytes([1, 4, 0, 0])),
        50708: (2, b"Toy camera\0"),
        50717: (3, [65535]),
        50721: (10, identity),
        50728: (5, rationals),
        50778: (3, [21]),
    }
    entries[273] = (4, [0])
    kinds = {1: "B", 2: "B", 3: "H", 4: "I", 5: "II", 10: "ii"}
    at = 8 + 2 + 12 * len(entries) + 4
    directory, body = struct.pack("<H", len(entries)), b""
    pixels_at = at + 4096
    entries[273] = (4, [pixels_at])
    for tag, (kind, values) in sorted(entries.items()):
        parts = [value if isinstance(value, tuple) else (value,) for value in values]
        packed = b"".join(struct.pack("<" + kinds[kind], *part) for part in parts)
        if len(packed) <= 4:
            value = packed.ljust(4, b"\0")
        else:
            value = struct.pack("<I", at + len(body))
            body += packed + b"\0" * (len(packed) % 2)
        directory += struct.pack("<HHI", tag, kind, len(values)) + value
    out = io.BytesIO()
    out.write(b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + body)
    out.write(bytes(pixels_at - out.tell()))
    out.write(mosaic.astype("<u2").tobytes())
    return out.getvalue()
