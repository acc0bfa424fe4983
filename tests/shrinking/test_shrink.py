"""Shrunk networks give the same outputs, and are as small as they can be."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from tests.shrinking.blocks import Net, assert_equal, multihead, small_gpt, trained, zero
from tests.shrinking.networks import CASES


def built(name: str) -> tuple[nn.Module, Tensor]:
    make, shape, _ = CASES[name]
    return trained(make()).eval(), torch.randn(2, *shape)


@pytest.mark.parametrize("name", CASES)
def test_outputs_stay_and_parameters_go(name: str) -> None:
    model, x = built(name)
    before = copy.deepcopy(model.state_dict())
    smaller = sp.shrink(model, x)
    report = smaller.shrink_report
    assert_equal(model, smaller, torch.randn(7, *x.shape[1:]))
    assert report.parameters[1] == sum(p.numel() for p in smaller.parameters()) == CASES[name][2]
    assert report.macs[1] <= report.macs[0] and str(report)
    assert (report.changed == {} and report.removed == ()) == (report.parameters[0] == report.parameters[1])
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    again = sp.shrink(smaller, x)
    second = again.shrink_report
    assert second.parameters[0] == second.parameters[1] and again is not smaller


@pytest.mark.parametrize("name", ["vgg", "encoder", "multihead", "groups", "depthwise", "vit", "branch"])
def test_shrunk_models_are_plain_models(name: str) -> None:
    model, x = built(name)
    smaller = sp.shrink(model, x)
    copies = [copy.deepcopy(smaller), torch.export.export(smaller, (x,)).module()]
    if name not in ("multihead", "branch"):  # functions written in a lambda or nested do not pickle
        copies.append(pickle.loads(pickle.dumps(smaller)))
        file = io.BytesIO()
        torch.save(smaller.state_dict(), file)
        file.seek(0)
        other = sp.shrink(trained(CASES[name][0]()).eval(), x)
        other.load_state_dict(torch.load(file))
        copies.append(other)
    for other in copies:
        assert_equal(smaller, other, x)
    smaller.train()
    if any(p.requires_grad for p in smaller.parameters()):
        smaller(x).square().mean().backward()
        assert all(p.grad is not None for p in smaller.parameters())


@pytest.mark.parametrize("name", ["vgg", "vit", "multihead"])
def test_shrunk_models_compile(name: str) -> None:
    model, x = built(name)
    smaller = sp.shrink(model, x)
    assert_equal(smaller, torch.compile(smaller, fullgraph=True, backend="aot_eager"), x)


@pytest.mark.parametrize("name", ["vgg", "vit", "depthwise"])
def test_shrunk_models_export_to_onnx(name: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = built(name)
    smaller = sp.shrink(model, x)
    program = torch.onnx.export(smaller, (x,), dynamo=True, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-4)


def test_language_models_with_tied_weights() -> None:
    model = small_gpt()
    tokens = torch.arange(10).reshape(2, 5) % 7
    smaller = sp.shrink(model, tokens)
    report = smaller.shrink_report
    assert_equal(model, smaller, (tokens + 3) % 7)
    assert smaller.head.weight is smaller.token.weight and smaller.token.weight.shape == (7, 12)
    attention = smaller.blocks[0].attention
    assert attention.heads == 2 and attention.qkv.out_features == 24 and smaller.blocks[0].fc1.out_features == 8
    assert report.changed["blocks.0.attention.qkv.weight"] == ((36, 12), (24, 12))


def test_masked_models_are_pruned_hardened_and_shrunk() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 6), nn.Linear(6, 2))
    keep = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.dim() > 1}
    keep["0.weight"][:5], keep["3.weight"][2:] = False, False
    keep.pop("4.weight")
    sp.convert(model, keep, pattern="rows")
    with pytest.raises(ValueError, match=r"FilterMaskedConv2d.*harden"):
        sp.shrink(model, torch.zeros(1, 3, 4, 4))
    smaller = sp.shrink(sp.harden(model), torch.randn(2, 3, 4, 4))
    assert smaller[3].out_features == 2 and smaller[0].out_channels <= 4
    assert_equal(model, smaller, torch.randn(5, 3, 4, 4))


def test_gated_branches_are_dropped_first() -> None:
    block = Net(lambda self, x: x + self.branch(x), branch=nn.Linear(3, 3))
    sp.nn.gate_branches(block, "branch", keep=0.2)
    with pytest.raises(ValueError, match=r"branch.*drop_branches"):
        sp.shrink(block, torch.zeros(1, 3))
    sp.nn.drop_branches(block)
    assert sp.shrink(block, torch.randn(2, 3)).shrink_report.parameters[1] == 0


def test_a_constant_unit_of_a_shared_layer_goes_where_its_constants_agree() -> None:
    model, x = built("shared")
    with torch.no_grad():
        model.a.bias[1] = model.shared.bias[1]
    smaller = sp.shrink(model, x)
    report = smaller.shrink_report
    assert smaller.shared.weight.shape == (5, 5) and report.parameters[1] == 25 + 30 + 12
    assert_equal(model, smaller, torch.randn(4, 4))


def test_modes_and_buffers_are_those_of_the_model() -> None:
    model, x = built("vgg")
    model.train()
    model[1].eval()
    state = [(name, tensor.clone()) for name, tensor in model.named_buffers()]
    smaller = sp.shrink(model, x)
    assert smaller.training and smaller[0].training and not smaller[1].training
    assert all(torch.equal(tensor, model.get_buffer(name)) for name, tensor in state)
    assert len(smaller[1].running_mean) == smaller[1].num_features == smaller[0].out_channels == 6


def test_the_transposed_linear_layers_of_transformers() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(zero(conv1d(6, 4), 0, 3, columns=True), nn.GELU(), conv1d(2, 6))
    nn.init.normal_(model[0].bias)
    smaller = sp.shrink(model, torch.randn(2, 5, 4))
    assert smaller[0].nf == 4 and smaller[2].weight.shape == (4, 2)
    assert_equal(model, smaller, torch.randn(3, 2, 4))


def test_functions_of_constants_need_no_rule() -> None:
    model = Net(
        lambda self, x: self.out(self.a(x) * torch.ones(5).cumsum(0)[2:3]),
        a=zero(nn.Linear(4, 6), 0),
        out=nn.Linear(6, 2),
    )
    smaller = sp.shrink(model, torch.randn(2, 4))
    assert smaller.out.in_features == 5
    assert_equal(model, smaller, torch.randn(3, 4))


def test_frozen_parameters_stay_frozen() -> None:
    model, x = built("mlp ReLU")
    model[0].requires_grad_(False)
    smaller = sp.shrink(model, x)
    assert not smaller[0].weight.requires_grad and smaller[2].weight.requires_grad


def test_a_layer_without_bias_gets_one_for_the_constants() -> None:
    model = nn.Sequential(zero(nn.Linear(4, 5), 1), nn.Tanh(), nn.Linear(5, 3, bias=False))
    smaller = sp.shrink(model, torch.randn(2, 4))
    assert smaller[2].bias is not None and smaller[2].in_features == 4
    assert_equal(model, smaller, torch.randn(3, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model, x = built("vgg")
    smaller = sp.shrink(model.to(dtype), x.to(dtype))
    report = smaller.shrink_report
    assert report.parameters[1] == CASES["vgg"][2] and {p.dtype for p in smaller.parameters()} == {dtype}


def test_cross_attention_with_a_mask() -> None:
    def forward(self: Net, x: Tensor, memory: Tensor) -> Tensor:
        later = torch.ones(len(x), len(memory), dtype=torch.bool).triu(2)
        return self.attention(x, memory, memory, attn_mask=later, need_weights=False)[0]

    layer = nn.MultiheadAttention(12, 4, kdim=5, vdim=5)
    nn.init.normal_(layer.in_proj_bias)
    model = Net(forward, attention=layer)
    zero(layer.out_proj, 0, 1, 2, columns=True)
    smaller = sp.shrink(model, (torch.randn(4, 2, 12), torch.randn(3, 2, 5)))
    assert smaller.attention.num_heads == 3 and smaller.attention.k_proj.weight.shape == (9, 5)
    assert_equal(model, smaller, torch.randn(4, 6, 12), torch.randn(3, 6, 5))


def test_attention_whose_weights_are_used_keeps_its_heads() -> None:
    layer = multihead(batch_first=True)
    model = Net(lambda self, x: self.attention(x, x, x)[1], attention=layer)
    smaller = sp.shrink(model, torch.randn(2, 5, 12))
    assert_equal(model, smaller, torch.randn(3, 5, 12))


def by_value(self: Net, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.out(y if y.sum() > 1e6 else -y)


def by_item(self: Net, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.out(y) * float(x.mean())


def part_written(self: Net, x: Tensor) -> Tensor:
    y = self.a(x)
    y[:, :2] = x[:, :2]
    return self.out(y)


def view_written(self: Net, x: Tensor) -> Tensor:
    y = self.a(x)
    y[:, :2].add_(x[:, :2])
    return self.out(y)


def view_read(self: Net, x: Tensor) -> Tensor:
    y = self.a(x)
    part = y[:, 2:4]
    y.relu_()
    return self.out(y) + part


def fixed_parts(self: Net, x: Tensor) -> Tensor:
    return self.out(self.a(x).view(-1, 2, 3).flatten(1))


def fixed_view(self: Net, x: Tensor) -> Tensor:
    return self.out(self.a(x).view(-1, 6))


def fixed_width(self: Net, x: Tensor) -> Tensor:
    y = self.a(x)
    assert y.shape[1] == 6
    return self.out(y)


def sorted_units(self: Net, x: Tensor) -> Tensor:
    return self.out(self.a(x).sort(-1).values)


def weight_read(self: Net, x: Tensor) -> Tensor:
    return self.out(self.a(x)) + self.out.weight.sum()


def weight_computed(self: Net, x: Tensor) -> Tensor:
    return self.out(nn.functional.linear(x, self.a.weight * self.a.weight.abs().max(), self.a.bias))


def detour(self: Net, x: Tensor) -> Tensor:
    return self.out(torch.from_numpy(self.a(x).numpy().copy()))


def with_input(self: Net, x: Tensor) -> Tensor:
    return self.out(self.a(x) + torch.cat([x, x], 1)[:, :6])


def with_noise(self: Net, x: Tensor) -> Tensor:
    return self.out(nn.functional.dropout(self.a(x), 0.5, training=True))


REFUSED = {
    by_value: "bool",
    by_item: "float",
    part_written: "setitem",
    view_written: "view of it",
    view_read: "view of it",
    fixed_parts: "cut",
    fixed_view: "view",
    fixed_width: "",
    sorted_units: "sort",
    weight_read: "both",
    weight_computed: "linear",
    detour: "numpy",
    with_input: "fixed size",
    with_noise: "dropout",
}


@pytest.mark.parametrize("forward", REFUSED, ids=lambda f: f.__name__)
def test_units_stay_where_they_cannot_go_and_the_report_says_why(forward) -> None:
    model = Net(forward, a=zero(nn.Linear(4, 6), 0, 1), out=nn.Linear(6, 2)).eval()
    x = torch.randn(2, 4)
    smaller = sp.shrink(model, x)
    report = smaller.shrink_report
    assert [p.shape for p in smaller.parameters()] == [p.shape for p in model.parameters()]
    assert sum(kept.units for kept in report.kept if kept.layer == "a") >= 2 or forward is weight_computed
    assert any(REFUSED[forward] in kept.reason for kept in report.kept) or forward is weight_computed
    if forward is not with_noise:
        assert_equal(model, smaller, torch.randn(2, 4))


def test_the_random_state_is_left_alone() -> None:
    model = Net(with_noise, a=nn.Linear(4, 6), out=nn.Linear(6, 2))
    before = torch.get_rng_state()
    sp.shrink(model, torch.ones(2, 4))
    assert torch.equal(before, torch.get_rng_state())


def test_outputs_in_objects_are_seen() -> None:
    class Output:
        def __init__(self, first: Tensor, last: Tensor) -> None:
            self.first, self.last = first, last

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = zero(nn.Linear(4, 6), 0), zero(nn.Linear(6, 5), 1)

        def forward(self, x: Tensor) -> Output:
            y = self.a(x)
            return Output(y, self.b(y))

    smaller = sp.shrink(Model(), torch.randn(2, 4))

    report = smaller.shrink_report
    assert report.parameters[0] == report.parameters[1] and smaller.a.out_features == 6
