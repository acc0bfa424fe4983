"""SparseLinear and sparsify: conversions, state, refusals, compile, and what stays dense."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

import stochprune as sp
from stochprune.functional.sparse_linear import sparse_linear as functional
from stochprune.nn import SparseLinear, sparsify
from stochprune.nn.sparsify import SMALLEST
from stochprune.sparse_rows import SparseRows, pack, why_invalid
from tests.nn.zoo import numbers

SIDE = 1024
assert SIDE * SIDE == SMALLEST


def linear(n: int, k: int, sparsity: float = 0.9, bias: bool = True) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, k, n, bias=bias)
    weight = numbers(n, k)
    kept = weight.abs().flatten().sort(stable=True).indices[int(sparsity * n * k) :]
    layer.weight.data = torch.zeros(n * k).index_copy(0, kept, weight.flatten()[kept]).view(n, k)
    if bias:
        layer.bias.data = numbers(n)
    return layer


@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7), (2, 0, 7), (4, 1, 2, 7)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_as_the_dense_layer(shape, bias):
    dense = linear(6, 7, 0.5, bias)
    sparse, x = SparseLinear.from_linear(dense), numbers(*shape)
    y = sparse(x)
    assert y.shape == (*shape[:-1], 6) and not y.requires_grad
    torch.testing.assert_close(y, dense(x).detach())
    again = sparse.to_linear()
    assert torch.equal(again.weight, dense.weight) and again.weight.requires_grad
    assert (again.bias is None) == (not bias)
    again(x).sum().backward()
    assert again.weight.grad is not None
    assert sparse.sparsity == 0.5 and "sparsity=0.5000" in repr(sparse)


def test_it_shares_nothing_with_the_dense_layer():
    dense = linear(6, 7)
    sparse = SparseLinear.from_linear(dense)
    before = sparse(numbers(2, 7))
    with torch.no_grad():
        dense.weight.add_(1)
        dense.bias.add_(1)
    assert torch.equal(sparse(numbers(2, 7)), before) and not [*sparse.parameters()]


def test_without_the_compiled_kernels_torch_serves(monkeypatch):
    sparse, x = SparseLinear.from_linear(linear(50, 70)), numbers(3, 70)
    expected = sparse(x)
    monkeypatch.setenv("STOCHPRUNE_BACKEND", "reference")
    torch.testing.assert_close(sparse(x), expected)


def test_state_copies_and_pickles():
    sparse, x = SparseLinear.from_linear(linear(20, 30)), numbers(4, 30)
    expected = sparse(x)
    buffer = io.BytesIO()
    torch.save(sparse.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert [*state] == ["values", "columns", "first", "bias"]
    for fresh in (SparseLinear(30, 20), SparseLinear.from_linear(linear(20, 30, 0.2))):
        fresh.load_state_dict(state)
        assert torch.equal(fresh(x), expected)
    with torch.device("meta"):
        blank = SparseLinear(30, 20)
    blank.load_state_dict(state, assign=True)
    assert torch.equal(blank(x), expected)
    for copied in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))):
        assert torch.equal(copied(x), expected) and copied.columns.dtype == torch.uint16
    whole = io.BytesIO()
    torch.save(sparse, whole)
    whole.seek(0)
    assert torch.equal(torch.load(whole, weights_only=False)(x), expected)
    assert torch.equal(SparseLinear(30, 20, bias=False)(x), torch.zeros(4, 20))


@pytest.mark.parametrize("name", ["values", "columns", "first", "bias"])
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_with_strides_loads(name, assign):
    """The kernel reads memory as it lies, and assign=True takes the tensors themselves."""
    sparse, x = SparseLinear.from_linear(linear(20, 30)), numbers(4, 30)
    state = sparse.state_dict()
    strided = torch.stack([state[name], torch.zeros_like(state[name])], 1)[:, 0]
    assert not strided.is_contiguous()
    other = SparseLinear(30, 20)
    other.load_state_dict({**state, name: strided}, assign=assign)
    assert torch.equal(other(x), sparse(x))


BROKEN = {
    "columns": torch.tensor([0, 30], dtype=torch.uint16),
    "values": torch.ones(3),
    "first": torch.tensor([0, 3, 2]),
    "bias": torch.ones(5),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_state_is_refused_and_changes_nothing(name):
    """Rows that point outside of x would be read there."""
    weight = torch.zeros(2, 30)
    weight[0, 3], weight[1, 7] = 1, 2
    dense = linear(2, 30)
    dense.weight.data = weight
    sparse = SparseLinear.from_linear(dense)
    before = {key: tensor.clone() for key, tensor in sparse.state_dict().items()}
    with pytest.raises(RuntimeError, match=name):
        sparse.load_state_dict({**before, name: BROKEN[name]})
    missing = {key: tensor for key, tensor in before.items() if key != name}
    with pytest.raises(RuntimeError, match=name):
        sparse.load_state_dict(missing)
    for key, tensor in sparse.state_dict().items():
        assert torch.equal(tensor, before[key])
    if name != "bias":
        with pytest.raises(RuntimeError, match=name):
            nn.Sequential(sparse).load_state_dict({f"0.{key}": tensor for key, tensor in missing.items()}, strict=False)


GOOD = pack(torch.eye(3, 5))


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"first": GOOD.first.int()}, "int32"),
        ({"first": GOOD.first[:0]}, r"\(0,\)"),
        ({"first": torch.tensor([1, 1, 2, 3])}, "first"),
        ({"first": torch.tensor([0, 1, 2, 4])}, "first"),
        ({"first": torch.tensor([0, 2, 1, 3])}, "first"),
        ({"first": torch.tensor([0, -1, 2, 3])}, "first"),
        ({"columns": GOOD.columns.short()}, "int16"),
        ({"columns": torch.tensor([0, 1, 5], dtype=torch.uint16)}, "below 5, got 5"),
        ({"first": torch.tensor([0, 3, 3, 3]), "columns": torch.tensor([1, 0, 2], dtype=torch.uint16)}, "rise"),
        ({"first": torch.tensor([0, 0, 3, 3]), "columns": torch.tensor([0, 2, 2], dtype=torch.uint16)}, "rise"),
        ({"values": torch.ones(2)}, r"\(2,\)"),
    ],
)
def test_rows_are_checked(changes, what):
    assert why_invalid(GOOD, 5) is None
    assert why_invalid(pack(torch.zeros(3, 5)), 5) is None and why_invalid(pack(torch.zeros(0, 0)), 0) is None
    assert why_invalid(pack(torch.ones(3, 5)), 5) is None
    reason = why_invalid(SparseRows(**{**GOOD._asdict(), **changes}), 5)
    assert reason is not None
    with pytest.raises(AssertionError, match=what):
        raise AssertionError(reason)


def test_what_it_does_not_take():
    sparse = SparseLinear.from_linear(linear(6, 7))
    x = numbers(2, 7)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64):
        with pytest.raises(TypeError, match=f"{dtype}.*to_linear"):
            sparse(x.to(dtype))
    with pytest.raises(TypeError, match=r"weight is torch\.bfloat16"):
        copy.deepcopy(sparse).bfloat16()(x)
    wide = linear(6, 7)
    wide.bias.data = wide.bias.data.double()
    with pytest.raises(TypeError, match=r"bias is torch\.float64"):
        SparseLinear.from_linear(wide)(x)
    for shape in ((2, 6), (7, 1), ()):
        with pytest.raises(ValueError, match=r"\.\.\., 7\]"):
            sparse(numbers(*shape))
    with pytest.raises(ValueError, match="meta"):
        sparse(x.to("meta"))
    with pytest.raises(RuntimeError, match=r"no_grad.*to_linear"):
        sparse(x.requires_grad_())
    with torch.no_grad():
        sparse(x)
    with pytest.raises(ValueError, match="65537"):
        SparseLinear(65537, 1)
    for sizes in ((-3, 1), (1, -3)):
        with pytest.raises(ValueError, match="-3"):
            SparseLinear(*sizes)
    with pytest.raises(TypeError, match="Conv2d"):
        SparseLinear.from_linear(nn.utils.skip_init(nn.Conv2d, 1, 1, 1))
    with pytest.raises(TypeError, match="bfloat16"):
        SparseLinear.from_linear(linear(2, 2).bfloat16())


def test_compiled_and_exported_graphs_hold_the_product(generator):
    model = nn.Sequential(SparseLinear.from_linear(linear(16, 24)), nn.ReLU(), SparseLinear.from_linear(linear(3, 16)))
    x = numbers(5, 24)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    assert torch.equal(compiled(x), expected) and torch.equal(compiled(x[:2]), expected[:2])
    assert torch.equal(torch.export.export(model, (x,)).module()(x), expected)
    args = (x, *model[0].rows, model[0].bias)
    torch.library.opcheck(torch.ops.stochprune.sparse_linear.default, args)


def test_vmap_and_fake_tensors(generator):
    sparse, x = SparseLinear.from_linear(linear(6, 7)), numbers(4, 3, 7)
    expected = sparse(x)
    assert torch.equal(torch.vmap(sparse)(x), expected)
    assert torch.equal(torch.vmap(torch.vmap(sparse), in_dims=1, out_dims=1)(x), expected)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert sparse(mode.from_tensor(x)).shape == (4, 3, 6)
    with FlopCounterMode(display=False):
        assert torch.equal(sparse(x), expected)
    with pytest.raises(RuntimeError, match="to_linear"):
        torch.func.grad(lambda x: sparse(x).sum())(x)
    with pytest.raises(RuntimeError, match="to_linear"):
        torch.func.jvp(sparse, (x,), (x,))
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="to_linear"):
        sparse(forward_ad.make_dual(x, x))
    columns, first, bias = sparse.columns, sparse.first, sparse.bias
    with pytest.raises(RuntimeError, match="one by one"):
        many = torch.stack([sparse.values] * 4)
        torch.vmap(lambda x, v: functional(x, SparseRows(v, columns, first), 7, bias))(x, many)


def test_threads_run_side_by_side():
    sparse = SparseLinear.from_linear(linear(200, 300))
    inputs = [numbers(i + 1, 300) for i in range(4)]
    expected, found = [sparse(x) for x in inputs], {}

    def work(i: int) -> None:
        for _ in range(50):
            found[i] = sparse(inputs[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(found[i], expected[i]) for i in range(4))


def test_sparsify_replaces_what_is_faster_and_says_what_stays(capsys, monkeypatch):
    model = nn.Sequential(
        linear(SIDE, SIDE),
        linear(SIDE, SIDE, 0.85),
        linear(16, SIDE, 0.99),
        linear(SIDE, SIDE).bfloat16(),
        nn.modules.linear.NonDynamicallyQuantizableLinear(4, 4, device="meta"),
        linear(SIDE, SIDE),
        linear(SIDE, SIDE),
        linear(SIDE, SIDE),
    )
    model[6].weight = model[5].weight
    prune.identity(model[7], "weight")
    calls = []
    model[0].register_forward_hook(lambda *args: calls.append(args))
    x, kept = numbers(3, SIDE), model[0]
    expected = kept(x).detach()
    calls.clear()
    assert sp.sparsify(model) is model
    assert [type(layer).__name__ for layer in model][:4] == ["SparseLinear", "Linear", "Linear", "Linear"]
    torch.testing.assert_close(model[0](x), expected)
    assert len(calls) == 1
    lines = capsys.readouterr().err.splitlines()
    reasons = ("1 stays dense: 85.0 %", "2 stays.* 16384 weights", "3 .*bfloat16", "4 .*NonDynamically", "5 .*shared")
    for line, reason in zip(lines, (*reasons, r"6 .*5\.weight, 6\.weight", "7 .*computed"), strict=True):
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(line)
    monkeypatch.setenv("STOCHPRUNE_BACKEND", "reference")
    assert type(sparsify(linear(SIDE, SIDE))) is nn.Linear
    assert "the model stays dense" in capsys.readouterr().err
    monkeypatch.delenv("STOCHPRUNE_BACKEND")
    assert type(sparsify(linear(SIDE, SIDE))) is SparseLinear
    assert type(sparsify(linear(16, 70000, 0.99))) is nn.Linear
    with pytest.raises(ValueError, match=r"0\.weight.*harden"):
        sparsify(nn.Sequential(sp.nn.MaskedLinear(4, 4)))
    with pytest.raises(TypeError, match="model"):
        sparsify([])
