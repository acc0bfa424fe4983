"""save_sparse and load_sparse: every bit comes back, sizes, ties, and files that are damaged, foreign or lie."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from torch import nn

import stochprune as sp
from stochprune.nn import sparse_file
from stochprune.runs.files import CheckpointError

safetensors = pytest.importorskip("safetensors.torch")
SHAPE = (37, 29)  # no multiple of eight


@pytest.fixture(autouse=True)
def own_random_numbers():
    """New layers start from torch's global generator, as in the programs of users."""
    with torch.random.fork_rng():
        yield


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def same(actual: dict, expected: dict) -> bool:
    """Whether names, dtypes, shapes and all bits are equal."""
    return list(actual) == list(expected) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
        for a, b in zip(actual.values(), expected.values(), strict=True)
    )


class Holder(nn.Module):
    """A model with this state."""

    def __init__(self, **tensors: torch.Tensor):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def zeroed(generator, shape=SHAPE, sparsity=0.9) -> torch.Tensor:
    return torch.randn(shape, generator=generator).where(torch.rand(shape, generator=generator) >= sparsity, 0)


def hardened(generator) -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.Linear(48, 32, bias=False))
    for layer in (model[0], model[2]):
        layer.weight.data = zeroed(generator, layer.weight.shape)
    return model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def stored(path) -> list[str]:
    return sorted(safetensors.load_file(path))


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.98, 1.0])
def test_every_bit_comes_back(path, dtype, sparsity, generator):
    expected = Holder(weight=zeroed(generator, sparsity=sparsity).to(dtype))
    sp.save_sparse(expected, path)
    assert same(sp.load_sparse(path), expected.state_dict())
    model = Holder(weight=torch.ones(SHAPE, dtype=dtype))
    assert sp.load_sparse(path, model) is model and same(model.state_dict(), expected.state_dict())


@pytest.mark.parametrize(
    "dtype, nan", [(torch.float32, 0x7F800001), (torch.bfloat16, 0x7F81), (torch.float16, -0x3FF), (torch.float64, -1)]
)
def test_negative_zeros_and_nan_payloads_come_back(path, dtype, nan, generator):
    weight = zeroed(generator).to(dtype)
    weight[0] = -0.0
    weight[1, 3:6] = torch.tensor([float("inf"), -float("inf"), torch.finfo(dtype).smallest_normal / 2])
    weight.view(sparse_file._BITS[weight.element_size()])[2, :5] = nan
    sp.save_sparse(Holder(weight=weight), path)
    assert stored(path) == ["weight:mask", "weight:values"]
    assert same(sp.load_sparse(path), {"weight": weight})


def test_shapes_and_strides(path, generator):
    tensors = {
        "empty": torch.empty(0, 5),
        "scalar": torch.tensor(0.0),
        "count": torch.tensor(7),
        "transposed": zeroed(generator).mT,
        "channels_last": zeroed(generator, (8, 6, 3, 3)).to(memory_format=torch.channels_last),
        "expanded": torch.zeros(1).expand(40, 50),
        "row": zeroed(generator)[3],  # a view of larger memory
        "complex": torch.complex(zeroed(generator), zeroed(generator)),
    }
    sp.save_sparse(Holder(**tensors), path)
    assert same(sp.load_sparse(path), tensors)
    model = Holder(**{name: tensor.clone().fill_(1) for name, tensor in tensors.items()})
    strides = {name: tensor.stride() for name, tensor in model.state_dict().items()}
    sp.load_sparse(path, model)
    assert same(model.state_dict(), tensors)
    assert strides == {name: tensor.stride() for name, tensor in model.state_dict().items()}


def test_tied_weights_are_stored_once_and_tied_again(path, generator):
    model = hardened(generator)
    model.append(nn.Linear(48, 32))
    model[3].weight = model[2].weight
    sp.save_sparse(model, path)
    assert not any(key.startswith("3.weight") for key in stored(path))
    state = sp.load_sparse(path)
    assert same(state, model.state_dict())
    assert state["2.weight"].data_ptr() == state["3.weight"].data_ptr()


def test_parts_of_one_memory_that_differ_are_stored_each(path, generator):
    qkv = zeroed(generator, (96, 32))
    tensors = {"q": qkv[:32], "k": qkv[32:64], "all": qkv, "square": qkv[:32].mT}
    sp.save_sparse(Holder(**tensors), path)
    assert same(sp.load_sparse(path), tensors)


def test_conjugates_and_negatives_of_one_memory_are_stored_each(path):
    """They share memory, strides and dtype with what they negate."""
    z = torch.complex(torch.eye(40), -torch.eye(40))
    tensors = {"z": z, "conjugate": z.conj(), "imaginary": z.imag, "negative": z.conj().imag}
    sp.save_sparse(Holder(**tensors), path)
    assert same(sp.load_sparse(path), {name: t.resolve_conj().resolve_neg() for name, t in tensors.items()})


def test_a_hardened_model_runs_as_before(path, generator):
    model = sp.harden(sp.convert(hardened(generator)), 0.9).eval()
    sp.save_sparse(model, path)
    other = sp.load_sparse(path, hardened(generator)).eval()
    x = torch.randn(5, 64, generator=generator)
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.98])
def test_the_size_is_a_bit_a_weight_and_the_kept_values(path, sparsity, generator):
    weight = zeroed(generator, (512, 512), sparsity)
    sp.save_sparse(Holder(weight=weight), path)
    assert os.path.getsize(path) - (weight.numel() // 8 + 4 * int(weight.count_nonzero())) < 700
    sp.save_sparse(Holder(weight=torch.ones(512, 512)), path)
    assert stored(path) == ["weight"]


def test_a_failed_write_leaves_the_old_file(path, generator):
    sp.save_sparse(hardened(generator), path)
    before = path.read_bytes()
    model = hardened(generator)
    model.register_module("extra", ExtraState())
    with pytest.raises(TypeError, match=r"extra\._extra_state"):
        sp.save_sparse(model, path)
    with pytest.raises(ValueError, match="weight"), torch.device("meta"):
        sp.save_sparse(nn.Linear(2, 2), path)
    with pytest.raises(TypeError, match=r"weight.*sparse_coo"):
        sp.save_sparse(Holder(weight=torch.eye(3).to_sparse()), path)
    with pytest.raises(ValueError, match="'a:mask'"):
        sp.save_sparse(Holder(**{"a": torch.zeros(64, 64), "a:mask": torch.zeros(2)}), path)
    with pytest.raises(TypeError, match=r"weight.*complex128"):
        sp.save_sparse(Holder(weight=torch.zeros(3, dtype=torch.complex128)), path)
    with pytest.raises(OSError, match="absent"):
        sp.save_sparse(hardened(generator), path.parent / "absent" / "file")
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


class ExtraState(nn.Module):
    def get_extra_state(self):
        return {"what": "anything"}

    def set_extra_state(self, state):
        pass


@pytest.fixture
def unchanged(generator):
    """A model that no failed load may change."""
    model = hardened(generator)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield model
    assert same(model.state_dict(), before)


def test_every_flipped_bit_and_every_cut_is_noticed(path, generator):
    model = Holder(weight=zeroed(generator, (12, 16), 0.98), bias=torch.ones(3))
    before = model.weight.clone()
    sp.save_sparse(model, path)
    assert "weight:mask" in stored(path)
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in range(8) if position % 5 == 0 or position < 16 else (position % 8,):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                sp.load_sparse(path, model)
    for length in (*range(0, len(content), 7), len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            sp.load_sparse(path, model)
    path.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError):
        sp.load_sparse(path, model)
    assert torch.equal(model.weight, before)


def forge(path, index: list, tensors: dict, **metadata: str) -> None:
    """Write a file with a valid digest."""
    text = json.dumps(index)
    digest = sparse_file._digest(text, tensors)
    header = {"format": sparse_file.FORMAT, "version": sparse_file.VERSION, "tensors": text, "digest": digest}
    safetensors.save_file(tensors, path, {**header, **metadata})


MASK, VALUES = torch.tensor([3], dtype=torch.uint8), torch.ones(2)
PARTS = {"w:mask": MASK, "w:values": VALUES}


def test_a_forged_file_that_is_right_loads(path):
    forge(path, [["w", [2, 4], "float32", "mask", None], ["v", [2, 4], "float32", "same", "w"]], PARTS)
    assert same(sp.load_sparse(path), {n: torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0]]) for n in "wv"})


@pytest.mark.parametrize(
    "index, tensors",
    [
        ([["w", [10**6, 10**6], "float32", "mask", None]], PARTS),
        ([["w", [0, 2**62], "float32", "mask", None]], {"w:mask": MASK[:0], "w:values": VALUES[:0]}),
        ([["w", [1] * 100 + [8], "float32", "mask", None]], PARTS),
        ([["w", [9], "float32", "mask", None]], PARTS),
        ([["w", [1], "float32", "mask", None]], PARTS),
        ([["w", [-8], "float32", "mask", None]], PARTS),
        ([["w", [-2, -4], "float32", "mask", None]], PARTS),
        ([["w", [8.0], "float32", "mask", None]], PARTS),
        ([["w", [True, 8], "float32", "mask", None]], PARTS),
        ([["w", [8], "float16", "mask", None]], PARTS),
        ([["w", [8], "nonsense", "mask", None]], PARTS),
        ([["w", [8], [], "mask", None]], PARTS),
        ([["w", 8, "float32", "mask", None]], PARTS),
        ([["w", [8], "float32", "other", None]], PARTS),
        ([["w", [8], "float32", "mask", None]], {**PARTS, "w:values": torch.ones(3)}),
        ([["w", [8], "float32", "mask", None]], {**PARTS, "w:values": torch.ones(2, 1)}),
        ([["w", [8], "float32", "mask", None]], {**PARTS, "w:mask": torch.ones(1)}),
        ([["w", [8], "float32", "mask", None]], {"w:mask": MASK}),
        ([["w", [2], "float32", "dense", None]], {"w": torch.ones(3)}),
        ([["w", [2], "float32", "dense", None]], {"w": torch.ones(2).double()}),
        ([["w", [2], "float32", "dense", None]], {"v": torch.ones(2)}),
        ([["w", [2], "float32", "same", "w"]], {"v": torch.ones(2)}),
        ([["w", [2], "float32", "same", "v"], ["v", [2], "float32", "dense", None]], {"v": torch.ones(2)}),
        ([["v", [2], "float32", "dense", None], ["w", [1], "float32", "same", "v"]], {"v": torch.ones(2)}),
        ([["v", [2], "float32", "dense", None], ["w", [2], "int32", "same", "v"]], {"v": torch.ones(2)}),
        ([["w"]], PARTS),
        (["w"], PARTS),
        ({"w": 1}, PARTS),
        (None, PARTS),
    ],
)
def test_a_forged_index_is_refused_before_memory_is_taken(path, index, tensors, unchanged, monkeypatch):
    forge(path, index, tensors)
    monkeypatch.setattr(torch, "zeros", None)
    for model in ((), (unchanged,)):
        with pytest.raises(CheckpointError, match="damaged"):
            sp.load_sparse(path, *model)


def test_other_files_are_refused(path, unchanged):
    index = [["w", [2, 4], "float32", "mask", None]]
    forge(path, index, PARTS, version="2")
    with pytest.raises(CheckpointError, match="'2'"):
        sp.load_sparse(path, unchanged)
    forge(path, index, PARTS, format="pt")
    with pytest.raises(CheckpointError, match="another program"):
        sp.load_sparse(path, unchanged)
    safetensors.save_file(PARTS, path)
    with pytest.raises(CheckpointError, match="another program"):
        sp.load_sparse(path, unchanged)
    torch.save(unchanged.state_dict(), path)
    with pytest.raises(CheckpointError):
        sp.load_sparse(path, unchanged)
    overflow = b'{"w":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'
    for content in (struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", len(overflow)) + overflow):
        path.write_bytes(content)
        with pytest.raises(CheckpointError):
            sp.load_sparse(path, unchanged)
    for absent in (path.parent / "absent", path.parent, "a\0b"):
        with pytest.raises(CheckpointError):
            sp.load_sparse(absent, unchanged)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="regular"):
        sp.load_sparse(path, unchanged)


def test_files_of_another_model_are_refused(path, unchanged, generator):
    for name, other in {
        "1.weight": nn.Sequential(nn.Linear(64, 48)),
        "0.weight": hardened(generator).to(torch.bfloat16),
        "2.weight": nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.Linear(48, 16, bias=False)),
        "3.bias": nn.Sequential(*hardened(generator), nn.Linear(32, 2)),
    }.items():
        sp.save_sparse(other, path)
        with pytest.raises(ValueError, match=rf"{name}"):
            sp.load_sparse(path, unchanged)
    sp.save_sparse(unchanged, path)
    with pytest.raises(ValueError, match=r"0\.weight.*to_empty"):
        sp.load_sparse(path, hardened(generator).to("meta"))
    with pytest.raises(TypeError, match="model"):
        sp.load_sparse(path, {})
