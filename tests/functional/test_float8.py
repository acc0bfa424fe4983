"""Frozen weights of eight bits: as their numbers in x's dtype, which contains them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune import functional
from stochprune.functional._checks import READS_FROZEN
from tests.backends.cases import ESTIMATORS, VARIANTS
from tests.functional.ops import OPS, Op
from tests.functional.ops import VARIANTS as CALLS

E4M3 = torch.float8_e4m3fn
BACKENDS = sorted({name.partition("-")[0] for name in VARIANTS} - {"cuda"})
TAKEN = {"native": (torch.float32, torch.bfloat16), "triton": (torch.float32,)}
EVERY = torch.arange(256, dtype=torch.uint8).view(E4M3)
"""All values of the dtype: two of them are NaN, none is infinite."""


def is_weight(name: str) -> bool:
    return name in ("weight", "a", "b")


def differentiate(op: Op, tensors: dict[str, Tensor], generator: torch.Generator) -> list[Tensor]:
    """Return the op's results, and the gradients of all tensors but the weights."""
    out = op.run(**tensors)
    trained = [t for t in tensors.values() if t.requires_grad]
    grads = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in out]
    return [*out, *torch.autograd.grad(out, trained, grads)]


@pytest.mark.parametrize("name", [n for n in CALLS if n.split()[0] in READS_FROZEN])
def test_results_and_gradients_of_every_op(name, generator):
    """With x in float32, the weight's numbers are the same in float32 and in bfloat16."""
    op = CALLS[name]
    if name == "masked_weights":
        op = op._replace(options={**op.options, "dtype": torch.float32})
    narrow = op.make(generator)
    narrow = {n: t.detach().to(E4M3) if is_weight(n) else t for n, t in narrow.items()}
    wide = {n: t.float() if is_weight(n) else t for n, t in narrow.items()}
    found = differentiate(op, narrow, torch.Generator().manual_seed(1))
    exact = differentiate(op, wide, torch.Generator().manual_seed(1))
    for got, expected in zip(found, exact, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_backends(backend, estimator, dtype, generator, monkeypatch):
    if dtype not in TAKEN.get(backend, (dtype,)):
        pytest.skip("the backend does not take this dtype, or the interpreter multiplies it wrongly")
    monkeypatch.setenv("STOCHPRUNE_BACKEND", backend)
    x, logits = torch.randn(3, 130, generator=generator).to(dtype), torch.randn(37, 130, generator=generator)
    weight, bias = torch.randn(37, 130, generator=generator).to(E4M3), torch.randn(37, generator=generator).to(dtype)
    at = {"seed": 1, "draw": 2, "stream": 3, "estimator": estimator, "temperature": 0.7, "samples": 2}
    found = []
    for w in (weight, weight.to(torch.float32 if dtype == torch.float16 else dtype)):
        given = [t.clone().requires_grad_() for t in (x, logits, bias)]
        y = functional.masked_linear(given[0], w, given[1], given[2], **at)
        found.append([y, *torch.autograd.grad(y.square().mean(), given)])
    for got, expected in zip(*found, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 if dtype.itemsize > 2 else 1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_value(backend, monkeypatch):
    """The masked weight holds every number of the dtype as it is, NaN too; pruned ones are 0."""
    monkeypatch.setenv("STOCHPRUNE_BACKEND", backend)
    values = EVERY
    if backend == "triton" and not torch.cuda.is_available():
        values = EVERY.float().nan_to_num(448.0).to(E4M3)  # Triton's interpreter reads NaN as 480
    weight, logits = values.view(4, 64), torch.full((4, 64), 40.0)
    logits[:, ::2] = -40.0
    at = {"seeds": torch.tensor([1]), "draws": torch.tensor([2]), "streams": [3]}
    for dtype in (torch.float32, torch.bfloat16):
        (z,) = functional.masked_weights([weight], [logits], **at, dtype=dtype)
        kept = torch.where(z == 0, 0, z)  # a weight is kept with a probability below one
        expected = torch.where(kept == 0, 0, weight.to(dtype))
        assert z.dtype == dtype and torch.equal(kept.nan_to_num(1e4), expected.nan_to_num(1e4))
        assert (z != 0).sum() > 120 and (z[:, ::2] != 0).sum() == 0


def test_the_scale_belongs_to_the_caller(generator):
    """The example of the docstring: with a scale for each output, the result is that of the rounded weight."""
    x, weight, logits = (torch.randn(*shape, generator=generator) for shape in ((5, 64), (9, 64), (9, 64)))
    weight *= torch.logspace(-4, 4, 9)[:, None]
    at, bias = {"seed": 1, "draw": 2, "stream": 3}, torch.randn(9, generator=generator)
    scale = weight.abs().amax(1) / 448
    y = functional.masked_linear(x, (weight / scale[:, None]).to(E4M3), logits, **at) * scale + bias
    exact = functional.masked_linear(x, weight, logits, bias, **at)
    errors = (y - exact).norm(dim=0) / exact.norm(dim=0)
    assert 0.001 < errors.mean() < 0.05


@pytest.mark.parametrize("name", sorted(READS_FROZEN))
def test_a_weight_of_eight_bits_has_no_gradient(name, generator):
    given = OPS[name].make(generator)
    given |= {n: t.detach().to(E4M3).requires_grad_() for n, t in given.items() if is_weight(n)}
    with pytest.raises(ValueError, match=rf"{name}: weight.*requires_grad_"):
        OPS[name].run(**given)


def test_masked_weights_needs_a_dtype(generator):
    given = {n: t.detach().to(E4M3) if is_weight(n) else t for n, t in OPS["masked_weights"].make(generator).items()}
    with pytest.raises(ValueError, match="masked_weights: dtype"):
        OPS["masked_weights"].run(**given)


def narrow_linear() -> nn.Linear:
    dense = nn.utils.skip_init(nn.Linear, 16, 4)
    dense.weight = nn.Parameter(torch.ones(4, 16).to(E4M3), requires_grad=False)
    return dense


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: sp.nn.MaskedLinear.from_linear(narrow_linear()), TypeError),
        (lambda: sp.convert(nn.Sequential(narrow_linear())), ValueError),
    ],
)
def test_layers_of_eight_bits_are_refused(call, error):
    with pytest.raises(error, match="float8_e4m3fn"):
        call()


def test_compiled(generator):
    x, logits = torch.randn(3, 64, generator=generator), torch.randn(8, 64, generator=generator).requires_grad_()
    weight, at = torch.randn(8, 64, generator=generator).to(E4M3), {"seed": 1, "draw": 2, "stream": 3}
    call = lambda x, logits: functional.masked_linear(x, weight, logits, **at)  # noqa: E731
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    y, expected = compiled(x, logits), call(x, logits)
    assert torch.equal(y, expected)
    grads = [torch.autograd.grad(out.sum(), logits)[0] for out in (y, expected)]
    assert torch.equal(*grads)


IN_LAYERS = {
    "linear": (lambda: sp.nn.MaskedLinear(8, 8), torch.ones(3, 8)),
    "embedding": (lambda: sp.nn.MaskedEmbedding(8, 8), torch.tensor([1, 2])),
    "rows": (lambda: sp.nn.StructuredMaskedLinear(8, 8), torch.ones(3, 8)),
    "filters": (lambda: sp.nn.FilterMaskedConv2d(2, 2, 3), torch.ones(1, 2, 5, 5)),
    "2:4": (lambda: sp.nn.NMMaskedLinear(8, 8), torch.ones(3, 8)),
}


@pytest.mark.parametrize("dtype", [E4M3, torch.float8_e5m2])
@pytest.mark.parametrize("name", IN_LAYERS)
def test_a_weight_that_is_put_into_a_layer_is_refused_by_name(name, dtype):
    make, x = IN_LAYERS[name]
    layer = make()
    layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    named = f"weight must be floating, got {dtype}"
    with pytest.raises(TypeError, match=named):
        layer.eval()(x)
    with pytest.raises(TypeError, match=named):
        sp.harden(nn.Sequential(layer))
    if dtype is not E4M3 or name != "linear":  # whose op reads it
        with pytest.raises(TypeError, match=named):
            layer.train()(x)
