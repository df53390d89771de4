"""Valid files of every reader, and files that differ from them in a few bytes or a few values."""

import copy
import io
import json
import random
import zipfile

ODD = [
    *(None, True, False, 0, -1, 1, 2.5, 1e308, -1e308, 1e-320, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400),
    *(float("nan"), float("inf"), "", "nan", "\ud800", "\x00", "\x1b[2J", "../x", "a" * 5000, "é", "a0.h0<q>", "input"),
    *([], {}, [[]], [None], {"": None}, [0] * 300, {"a": {"b": {}}}),
]
BYTES = [
    b"\x00" * 8,
    b"\xff" * 8,
    b"\x7f",
    b"[" * 300,
    b'{"a":' * 300,
    b"\xed\xa0\x80",
    b"1e999",
    b"NaN",
    b'"',
    b"\n",
    b",",
]


def odd(draw):
    """A value of its own: what is changed may be changed again."""
    return copy.deepcopy(draw.choice(ODD))


def changed_bytes(whole, draw):
    """Bytes flipped, cut out, put in, repeated, or cut off."""
    data = bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        at, size = draw.randrange(len(data) + 1), draw.choice([1, 1, 2, 4, 8, 40])
        kind = draw.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at : at + size] = draw.choice(BYTES)
        elif kind == 3:
            data[at:at] = draw.choice(BYTES)
        elif kind == 4:
            data[at:at] = data[at : at + size]
        elif draw.random() < 0.3:
            del data[at:]
    return bytes(data)


def changed_values(value, draw):
    """A JSON value, a few of its parts replaced, left out or added."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return odd(draw)
        table, key = draw.choice(places)
        kind = draw.randrange(5)
        if kind == 0:
            del table[key]
        elif kind == 1 and isinstance(table, dict):
            table[draw.choice(["odd", "", "format", "graph", str(key) + "x"])] = odd(draw)
        elif kind == 2:
            table[key] = [table[key]] if draw.random() < 0.5 else {"x": table[key]}
        else:
            table[key] = odd(draw)
    return value


def _places(value):
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in entries:
        yield value, key
        yield from _places(part)


def changed_json(whole, draw):
    """Text of JSON with other values, sometimes a name twice, or other bytes."""
    if draw.random() < 0.3:
        return changed_bytes(whole, draw)
    text = json.dumps(changed_values(json.loads(whole), draw))
    if draw.random() < 0.05:
        text = text.replace("{", '{"cfg": 1, "cfg": 2, ', 1)
    return text.encode()


def changed_lines(whole, draw):
    """Lines of JSON."""
    lines = whole.split(b"\n")
    row = draw.randrange(len(lines))
    lines[row] = changed_json(lines[row], draw) if lines[row].strip() else draw.choice(BYTES)
    return b"\n".join(lines)


def changed_archive(whole, draw):
    """An .npz whose parts have other bytes under a right checksum, or other bytes itself."""
    if draw.random() < 0.3:
        return changed_bytes(whole, draw)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        names = old.namelist()
        one = draw.choice(names)
        for name in names:
            data = old.read(name)
            if name == one:
                data = data.replace(*draw.choice(HEADERS)) if draw.random() < 0.6 else changed_bytes(data, draw)
                name = draw.choice([name, name, name, "odd.npy", "odd"])
            new.writestr(name, data)
    return made.getvalue()


HEADERS = [
    (b"'shape': (", b"'shape': (99999999999, "),
    (b"'shape': (", b"'shape': (-1, "),
    (b"'shape': (", b"'shape': (0, "),
    (b"'<i4'", b"'|O'"),
    (b"'<i4'", b"'<f8'"),
    (b"'<f4'", b"'<c8'"),
    (b"'<i4'", b"'<U4'"),
    (b"False", b"True"),
    (b"\x93NUMPY\x01", b"\x93NUMPY\x03"),
]


def changed_header(whole, draw):
    """A .safetensors file with another header, or other bytes."""
    if draw.random() < 0.3:
        return changed_bytes(whole, draw)
    size = int.from_bytes(whole[:8], "little")
    header = json.dumps(changed_values(json.loads(whole[8 : 8 + size]), draw)).encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + whole[8 + size :]


def inputs(whole, change, seed, count):
    """So many different inputs made of a valid one."""
    for number in range(count):
        yield change(whole, random.Random(f"{seed} {number}"))
