"""Pickles that want to run code, take memory or time: each is refused at once, and none has an effect."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from stochprune.data import pickled
from stochprune.data.cifar import _read

PIXELS = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
PROTOCOLS = [2, 3, 4, 5]


def write(tmp_path, content: bytes):
    path = tmp_path / "data_batch_1"
    path.write_bytes(content)
    return path


def batch(data=PIXELS, labels=(3, 9), protocol: int = 2) -> bytes:
    return pickle.dumps({b"batch_label": b"one", b"labels": labels, b"data": data}, protocol=protocol)


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def array(shape: bytes, dtype: bytes, content: bytes, fortran: bytes = b"\x89", state: bytes = b"") -> bytes:
    """The opcodes of an array, as Python 2 writes it: every part can be replaced."""
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU" + bytes([len(dtype)]) + dtype + b"K\x00K\x01\x87R" + (state or STATE) + b"b"
    return made + b"(K\x01" + shape + kind + fortran + b"T" + number(len(content))[1:] + content + b"tb"


STATE = b"(K\x03U\x01|NNN" + number(-1) + number(-1) + b"K\x00t"
SHAPE = b"K\x02M\x00\x0c\x86"
LABELS = b"U\x06labels]K\x03aK\x09as"


def python2(data: bytes) -> bytes:
    return b"\x80\x02}" + LABELS + b"U\x04data" + data + b"s."


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("labels", [[3, 9], np.array([3, 9]), np.array([3, 9], dtype=">i2")], ids=["list", "<", ">"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_of_numpy_are_read(tmp_path, protocol, labels, order):
    images, found = _read(write(tmp_path, batch(np.array(PIXELS, order=order), labels, protocol)))
    assert images.dtype == torch.uint8 and found.dtype == torch.int64 and found.tolist() == [3, 9]
    assert torch.equal(images.reshape(2, 3072), torch.from_numpy(PIXELS))
    images.zero_()  # the tensor is its own, not a view of a file's bytes


def test_pickles_of_python_2_are_read(tmp_path):
    images, labels = _read(write(tmp_path, python2(array(SHAPE, b"u1", PIXELS.tobytes()))))
    assert np.array_equal(images.reshape(2, 3072).numpy(), PIXELS) and labels.tolist() == [3, 9]


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def nested(depth: int, key: bool) -> bytes:
    return b"\x80\x02}" + b"(" * key + b")" + b"\x85" * depth + (b"K\x01u." if key else b".")


def laughs(levels: int) -> bytes:
    return b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * levels + b"K\x01s."


MEGABYTE = b"X" + number(1 << 20)[1:] + b"a" * (1 << 20)
HOSTILE = {
    "os.system": pickle.dumps(Call(os.system, "touch ran"), 2),
    "os.system in a label": batch(labels=[1, Call(os.system, "touch ran")]),
    "eval": pickle.dumps(Call(eval, "open('ran', 'w')"), 4),
    "an import that ends the process": b"\x80\x02cnumpy.f2py.__main__\nmain\n.",
    "an import through a stack global": b"\x80\x04\x8c\x13numpy.f2py.__main__\x8c\x04main\x93.",
    "an attribute of an attribute": b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dtype\x93.",
    "numpy.load": b"\x80\x02cnumpy\nload\nU\x03ran\x85R.",
    "void to objects": python2(array(SHAPE, b"V8", b"\x41" * 16)),
    "objects": batch(data=np.array([object] * 2, dtype=object)),
    "objects by state": python2(array(SHAPE, b"u1", bytes(6144), state=STATE.replace(b"|NNN", b"|NU\x01f}"))),
    "flags of objects": python2(array(SHAPE, b"O8", bytes(16), state=STATE.replace(b"K\x00t", b"K?t"))),
    "a state that is a dict": b"\x80\x02cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R}b.",
    "a state of a function": b"\x80\x02cnumpy\ndtype\n}b.",
    "structures": batch(data=np.zeros(2, dtype=[("a", "u1")])),
    "floats": batch(data=PIXELS.astype(np.float32)),
    "complex": batch(data=PIXELS.astype(np.complex64)),
    "times": batch(data=np.zeros(2, dtype="M8[s]")),
    "text": batch(data="pixels"),
    "no data": pickle.dumps({b"labels": [1]}, 2),
    "a list": pickle.dumps([PIXELS], 2),
    "a negative shape": python2(array(number(-2) + number(-3072) + b"\x86", b"u1", PIXELS.tobytes())),
    "a huge shape": python2(array(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"u1", PIXELS.tobytes())),
    "a huge shape of nothing": python2(array(b"K\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87", b"u1", b"")),
    "a shape that is a float": python2(array(b"G@\x00\x00\x00\x00\x00\x00\x00M\x00\x0c\x86", b"u1", PIXELS.tobytes())),
    "many dimensions": python2(array(b"(" + b"K\x01" * 4000 + b"t", b"u1", b"x")),
    "an unknown order": python2(array(SHAPE, b"u1", PIXELS.tobytes(), fortran=b"K\x07")),
    "an array without state": python2(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"),
    "a subclass of arrays": python2(b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\ndtype\nK\x00\x85U\x01b\x87R"),
    "numpy.ndarray itself": python2(b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x85R"),
    "a type of 2 GB": python2(array(SHAPE, b"S2147483647", b"x")),
    "labels as text": batch(labels="39"),
    "labels out of range": batch(labels=[3, 10]),
    "a negative label": batch(labels=[3, -1]),
    "labels beyond 64 bits": batch(labels=[3, 10**400]),
    "labels that are true": batch(labels=[True, False]),
    "labels of another number": batch(labels=[3]),
    "labels in two dimensions": batch(labels=np.zeros((2, 2), dtype=np.int64)),
    "no examples": batch(data=PIXELS[:0], labels=[]),
    "a memo of 2^31": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a memo that is not there": b"\x80\x02j\xff\xff\xff\x7f.",
    "bytes of 2^62": b"\x80\x05\x8e" + (1 << 62).to_bytes(8, "little") + b".",
    "a bytearray of 2^62": b"\x80\x05\x96" + (1 << 62).to_bytes(8, "little") + b".",
    "a frame of 2^62": b"\x80\x05\x95" + (1 << 62).to_bytes(8, "little") + b"}.",
    "an integer of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "an integer in text": b"\x80\x02L" + b"9" * 100_000 + b"L\n.",
    "deep tuples": nested(900_000, key=False),
    "deep tuples as a key": nested(900_000, key=True),
    "a key that takes forever to hash": laughs(100),
    "too many steps": b"\x80\x02" + b"N0" * 2_000_000 + b"N.",
    "many numbers": b"\x80\x02](" + b"K\x01" * 2_000_000 + b"e.",
    "one text, encoded a thousand times": b"\x80\x02c_codecs\nencode\nq\x00"
    + MEGABYTE
    + b"U\x06latin1\x86q\x01"
    + b"h\x00h\x01R" * 1000
    + b".",
    "another codec": b"\x80\x03c_codecs\nencode\nX\x01\x00\x00\x00aX\x0c\x00\x00\x00unicode_test\x86R.",
    "a persistent object": b"\x80\x02U\x01aQ.",
    "an instance": b"(ios\nsystem\n.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a new object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "an external buffer": b"\x80\x05\x97.",
    "nothing": b"",
    "no pickle": b"PK\x03\x04",
    "a second pickle": batch() + batch(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, HOSTILE[name])
    before = set(sys.modules)
    with pytest.raises(ValueError, match="data_batch_1"):
        _read(path)
    assert set(sys.modules) == before and [p.name for p in tmp_path.iterdir()] == ["data_batch_1"]


def test_no_hostile_pickle_ends_the_process_or_takes_memory_or_time(tmp_path):
    """In a process of its own, in which no coverage is measured, and the garbage collector sees no other tests."""
    for number, content in enumerate(HOSTILE.values()):
        (tmp_path / str(number)).write_bytes(content)
    program = f"""
import pathlib, resource, time
from stochprune.data.cifar import _read
resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, 1 << 20))
used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for number in range({len(HOSTILE)}):
    start = time.process_time()
    try:
        _read(pathlib.Path(str(number)))
    except ValueError:
        if time.process_time() - start > 2:
            raise SystemExit(f"{{number}} took {{time.process_time() - start}} seconds")
        continue
    raise SystemExit(f"{{number}} was taken")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used
print("all refused" if grown < 600_000 else f"{{grown}} kB more")
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "all refused\n"), run.stderr
    assert not (tmp_path / "ran").exists()


SMALL = {protocol: pickle.dumps({b"data": PIXELS[:, :4].copy(), b"labels": [3, 9]}, protocol) for protocol in PROTOCOLS}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_truncated_pickle_is_refused_at_every_length(protocol):
    for length in range(len(SMALL[protocol])):
        with pytest.raises(ValueError, match="damaged"):
            pickled.loads(SMALL[protocol][:length])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_flipped_byte_gives_arrays_or_an_error(protocol):
    refused = 0
    for index in range(len(SMALL[protocol])):
        for flip in (*(1 << bit for bit in range(8)), 0xFF):
            content = bytearray(SMALL[protocol])
            content[index] ^= flip
            try:
                made = pickled.loads(bytes(content))
            except ValueError:
                refused += 1
                continue
            for value in made.values() if isinstance(made, dict) else ():
                assert not isinstance(value, np.ndarray) or value.dtype.kind in "iu"
    assert refused > 4 * len(SMALL[protocol])


def test_every_flipped_byte_of_a_batch_gives_a_batch_or_an_error(tmp_path):
    whole = batch(PIXELS[:1], [3])
    pixels = whole.index(PIXELS[:1].tobytes()[:100].decode("latin1").encode())
    for index in [*range(pixels + 8), *range(len(whole) - 8, len(whole))]:
        content = bytearray(whole)
        content[index] ^= 0xFF
        try:
            images, labels = _read(write(tmp_path, bytes(content)))
        except ValueError:
            continue
        assert images.shape == (1, 3, 32, 32) and labels.shape == (1,) and 0 <= int(labels) <= 9
