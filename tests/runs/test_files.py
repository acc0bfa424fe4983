"""Files that are written whole or not at all, and what the reader refuses."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import random
import resource
import time
import zipfile
from pathlib import Path

import pytest
import torch

from stochprune.runs import CheckpointError, load_tensors, read_json, save_tensors, write_json
from stochprune.runs.files import MARK, require

READERS = {"json": lambda path: read_json(path, "result"), "tensors": load_tensors}
WRITERS = {
    "json": lambda path, n: write_json(path, {"n": n, "long": list(range(5000))}),
    "tensors": lambda path, n: save_tensors(path, {"n": n, "long": torch.arange(5000)}),
}


def in_a_fork(work) -> int:
    """The exit status of a process that does ``work``."""
    if not (pid := os.fork()):
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


def test_json_round_trip(tmp_path):
    content = {"a": (1, 2.5, -0.0, 1e-320, 2**64, "\u00e9\n"), "b": {"c": None, "d": [True, {}]}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json", "result") == json.loads(json.dumps(content))
    assert "digest" in json.loads((tmp_path / "x.json").read_text())
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


@pytest.mark.parametrize(
    "content", [{"x": float("nan")}, {"x": [float("inf")]}, {"x": 10**400}, {"x": -(2**65)}, {"digest": "mine"}]
)
def test_json_that_could_not_be_read_is_not_written(tmp_path, content):
    write_json(tmp_path / "x.json", {"n": 1})
    with pytest.raises(ValueError, match=r"x\.json"):
        write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json", "result") == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "3",
        '"x"',
        '{"n": NaN, "digest": ""}',
        '{"n": 1e999, "digest": ""}',
        f'{{"n": {10**400}, "digest": ""}}',
        '{"n": 1, "digest": "0"}',
        '{"n": 1, "digest": 3}',
        "[" * 200_000,
        '{"a":' * 200_000,
        "\ufeff{}",
        "\x00",
    ],
)
def test_json_of_others_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"x\.json") as caught:
        read_json(path, "result")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("depth", [32, 500, 900])
def test_deep_json_is_refused_before_its_digest_is_compared(tmp_path, depth):
    """To write it takes depth times its size: half a minute here."""
    path, content = tmp_path / "x.json", "[" * depth + ",".join(["1"] * 400_000) + "]" * depth
    digest = hashlib.sha256(f'{{"a":{content}}}'.encode()).hexdigest()
    path.write_text(f'{{"a":{content},"digest":"{digest}"}}')
    start = time.process_time()
    with pytest.raises(CheckpointError, match=r"x\.json .*nested"):
        read_json(path, "result")
    assert time.process_time() - start < 10


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_tensors_of_a_forger_are_refused_in_one_line(tmp_path):
    """With a digest that is right, so that torch's reader meets them."""
    path, numbers, refused = tmp_path / "x.pt", random.Random(0), 0
    save_tensors(path, {"x": torch.arange(3), "y": [{"z": torch.ones(2, 2)}, (None, 1.5)]})
    whole = path.read_bytes()[: -len(MARK) - 32]
    first = whole.index(b"\x80\x02}")
    last = whole.index(b"PK", first)
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(3):
            data[numbers.randrange(first, last)] = numbers.randrange(256)
        path.write_bytes(data + MARK + hashlib.sha256(data).digest())
        try:
            load_tensors(path)
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 300


def test_compressed_tensors_are_refused(tmp_path):
    """A megabyte may hold a gigabyte. torch compresses nothing when it writes."""
    path, packed = tmp_path / "x.pt", io.BytesIO()
    save_tensors(path, {"x": torch.zeros(1000)})
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    packed.seek(0)
    assert torch.load(packed, weights_only=True)["x"].shape == (1000,)
    data = packed.getvalue()
    path.write_bytes(data + MARK + hashlib.sha256(data).digest())
    with pytest.raises(CheckpointError, match=r"x\.pt .*checkpoint"):
        load_tensors(path)


def test_huge_files_are_refused_at_once(tmp_path):
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    start = time.monotonic()
    for read in READERS.values():
        with pytest.raises(CheckpointError, match="huge"):
            read(path)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("kind", READERS)
def test_paths_that_are_not_files_are_refused_in_one_line(tmp_path, kind, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 4)
    WRITERS[kind](tmp_path / "closed", 1)
    allowed = os.stat

    def stat(path, **options):
        if str(path).endswith("closed"):  # the superuser, who may run the tests, can read everything
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return allowed(path, **options)

    monkeypatch.setattr("stochprune.runs.files.os.stat", stat)
    for name in ("folder", "loop", "dangling", "pipe", "binary", "closed", "missing", "a\0b", "x" * 300, "binary/x"):
        with pytest.raises(CheckpointError) as caught:
            READERS[kind](tmp_path / name)
        assert name[:20].replace("\0", "\\x00") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_write_that_fails_leaves_the_former_and_nothing_else(tmp_path, monkeypatch, kind, step, number):
    path = tmp_path / "x"
    WRITERS[kind](path, 1)

    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path if step == "open" else os, step, fail)
        with pytest.raises(OSError) as caught:
            WRITERS[kind](path, 2)
    assert (caught.value.errno, caught.value.filename) == (number, str(path))
    assert READERS[kind](path)["n"] == 1 and [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_too_large_for_its_limit(tmp_path, kind):
    """The error of the system, though torch's writer hides it behind one of its own."""
    WRITERS[kind](tmp_path / "x", 1)

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(OSError) as caught:
            WRITERS[kind](tmp_path / "x", 2)
        assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "x"))

    assert in_a_fork(work) == 0
    assert READERS[kind](tmp_path / "x")["n"] == 1 and [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", WRITERS)
def test_interrupts_pass_through(tmp_path, monkeypatch, kind):
    """In a library call KeyboardInterrupt stays what it is, also inside torch's writer."""
    WRITERS[kind](tmp_path / "x", 1)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("stochprune.runs.files._Hashed.write" if kind == "tensors" else "os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[kind](tmp_path / "x", 2)
    assert READERS[kind](tmp_path / "x")["n"] == 1 and [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", WRITERS)
def test_writers_of_one_path_do_not_meet(tmp_path, kind):
    """Two processes write, this one reads: each time a whole file."""
    path = tmp_path / "x"
    WRITERS[kind](path, 0)
    writers = []
    for writer in (1, 2):
        if not (pid := os.fork()):
            for _ in range(150):
                WRITERS[kind](path, writer)
            os._exit(0)
        writers.append(pid)
    seen, left = set(), set(writers)
    while left:
        seen.add(READERS[kind](path)["n"])
        left = {pid for pid in left if os.waitpid(pid, os.WNOHANG) == (0, 0)}
    assert seen <= {0, 1, 2} and len(seen) > 1 and [entry.name for entry in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_is_on_disk_before_its_name_and_its_name_before_the_return(tmp_path, monkeypatch, kind):
    done = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)

        def watch(*arguments, name=name, original=original):
            done.append(name)
            return original(*arguments)

        monkeypatch.setattr(os, name, watch)
    WRITERS[kind](tmp_path / "x", 1)
    assert done == ["fsync", "replace", "fsync"]


def test_torch_reads_what_was_saved(tmp_path):
    save_tensors(tmp_path / "x.pt", {"a": torch.arange(3)})
    assert torch.equal(torch.load(tmp_path / "x.pt", weights_only=True)["a"], torch.arange(3))


def test_kinds():
    kinds = {"n": int, "x": float | None, "b": bool, "l": list[int]}
    content = {"n": 1, "x": None, "b": True, "l": [2]}
    assert require(content, kinds, Path("f")) == content
    changes = ({"n": True}, {"n": 1.0}, {"x": True}, {"x": "1"}, {"b": 1}, {"l": [2.0]}, {"l": (2,)}, {"l": None})
    for wrong in (None, [], {"n": 1}, *({**content, **change} for change in changes)):
        with pytest.raises(CheckpointError, match=r"^f\b"):
            require(wrong, kinds, Path("f"))


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):
        write_json(tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 1
