"""Every contender of every op is right at a tiny shape, or says why it is absent."""

from __future__ import annotations

import sys

import pytest
import torch

from stochprune import backends
from stochprune.bench.case import Absent, Case, is_ours
from stochprune.bench.cases import GROUPS
from stochprune.bench.ops import OPS, certificate, mask, network_ways, training_step
from stochprune.bench.ops.linear import ROUTE, ROUTES
from stochprune.cli.bench import GROUPS as NAMES
from stochprune.extras import MissingExtraError

CPU = torch.device("cpu")
LAYER = {"rows": 24, "cols": 40, "tokens": 6}
CONVOLUTION = {"examples": 2, "channels": 3, "filters": 5, "size": 4}
SHAPES = {
    "linear": LAYER,
    "linear_nm": {**LAYER, "n": 2, "m": 4},
    "gaussian_linear": LAYER,
    "linear_scaled": {**LAYER, "draws": 3},
    "conv2d": CONVOLUTION,
    "linear_draws": {**LAYER, "draws": 2},
    "conv2d_draws": {**CONVOLUTION, "draws": 2},
    "embedding": LAYER,
    "attention": {"examples": 2, "tokens": 3, "width": 16},
    "mask": {"rows": 24, "cols": 40},
    "bernoulli_kl": {"weights": 1000},
    "gaussian_kl": {"weights": 1000},
    **{network: {"examples": 2} for network in ("resnet20", "resnet18", "vgg16", "vit", "mlp_1m", "mlp_4m", "mlp_16m")},
    **{network: {"draws": 2, "examples": 2} for network in ("lenet_300_100", "pbb_fc", "pbb_cnn")},
}
WIDE = {"linear": (), "linear_nm": ("float32", "bfloat16"), "gaussian_linear": ("float32", "bfloat16")}
"""Dtypes of an op if not float32 alone; ``test_laws`` tries linear."""
TRIED = [(op, dtype, name) for op in OPS for dtype in WIDE.get(op, ("float32",)) for name in OPS[op].laws]


LARGE = ("resnet18", "vgg16", "vit", "pbb_fc", "pbb_cnn", "mlp_4m", "mlp_16m")
TRIED = [
    pytest.param(*case, marks=[pytest.mark.slow] if case[0] in LARGE or case[2] == "compile" else []) for case in TRIED
]


@pytest.mark.parametrize(("op", "dtype", "contender"), TRIED)
def test_every_contender_is_right(op, dtype, contender):
    case = Case("ops", op, SHAPES[op], dtype)
    with torch.random.fork_rng():
        try:
            verdict = OPS[op].check(contender, case, CPU)
        except (Absent, MissingExtraError) as error:
            assert not is_ours(contender) and str(error)
            return
        assert verdict.wrong is None and verdict.bits_equal is not False
        way = OPS[op].make(contender, case, CPU)
        with way.within():
            y = way.forward()
        grads = way.backward(y) if way.trained else {}
        parts = {part for cases in GROUPS.values() for each in cases if each.op == op for part in each.parts}
        runs = [way.part(part) for part in sorted(parts)]
        for run in runs * 2:  # in turns: a backward pass follows later forward passes
            run()
    assert way.weights > 0 and all(grads[name].shape == way.tensors[name].shape for name in way.trained)
    assert OPS[op].work(case, "step").bytes >= OPS[op].work(case, "forward").bytes > 0


@pytest.mark.parametrize("op", ["bernoulli_kl", "gaussian_kl"])
def test_a_wrong_divergence_is_seen(monkeypatch, op):
    eager = type(OPS[op]).eager
    monkeypatch.setattr(type(OPS[op]), "ours", staticmethod(lambda *tensors: eager(*tensors) / tensors[0].numel()))
    assert "value" in OPS[op].check("ours", Case("ops", op, SHAPES[op]), CPU).wrong


def test_a_wrong_mask_is_seen(monkeypatch):
    case = Case("ops", "mask", SHAPES["mask"])
    monkeypatch.setattr("stochprune.bench.ops.mask.STREAM", 3)
    assert OPS["mask"].check("ours", case, CPU).bits_equal is False
    monkeypatch.setitem(mask.WAYS, "eager", lambda weight, logits: lambda: weight * (logits > 0))
    assert "keeps" in OPS["mask"].check("eager", case, CPU).wrong


def test_a_copy_of_other_numbers_is_seen(monkeypatch):
    monkeypatch.setitem(mask.WAYS, "copy", lambda weight, logits: lambda: weight * 1.01)
    assert OPS["mask"].check("copy", Case("ops", "mask", SHAPES["mask"]), CPU).wrong


def test_a_network_that_is_wrong_in_large_batches_is_seen(monkeypatch):
    right = network_ways.eager

    def wrong(model, names):
        model.register_forward_hook(lambda module, given, y: y * 1.5 if len(y) > 2 else y)
        return right(model, names)

    monkeypatch.setitem(network_ways.WAYS, "eager", wrong)
    with torch.random.fork_rng():
        checks = [OPS["mlp_1m"].check("eager", Case("memory", "mlp_1m", {"examples": n}), CPU) for n in (2, 16)]
    assert checks[0].wrong is None and "the case's batch" in checks[1].wrong


def test_a_network_with_a_wrong_layer_is_seen(monkeypatch):
    right = network_ways.eager

    def wrong(model, names):
        parts = right(model, names)
        mask = model.fc.parametrizations.weight[0]
        mask.forward = lambda weight: weight * torch.sigmoid(mask.logits)
        return parts

    monkeypatch.setitem(network_ways.WAYS, "eager", wrong)
    with torch.random.fork_rng():
        assert OPS["resnet20"].check("eager", Case("models", "resnet20", {"examples": 2}), CPU).wrong


DRAWS = Case("certificates", "lenet_300_100", SHAPES["lenet_300_100"])


@pytest.mark.parametrize(
    ("contender", "field", "factor", "finds"),
    [
        ("eager", "logits", 0.5, "keeps"),
        ("eager, gaussian", "sigma", 0.9, "variance"),
        ("eager, spike and slab", "mean", 1.5, "variance"),
    ],
)
def test_wrong_weights_of_eager_draws_are_seen(monkeypatch, contender, field, factor, finds):
    def wrong(layers, right=certificate.sampler):
        return right({n: layer._replace(**{field: getattr(layer, field) * factor}) for n, layer in layers.items()})

    monkeypatch.setattr(certificate, "sampler", wrong)
    assert finds in OPS["lenet_300_100"].check(contender, DRAWS, CPU).wrong


def test_networks_of_other_draws_are_seen(monkeypatch):
    right = certificate.network_losses
    monkeypatch.setattr(certificate, "network_losses", lambda *given: right(*given[:-1], given[-1] + 1))
    assert "losses" in OPS["lenet_300_100"].check("ours", DRAWS, CPU).wrong


def test_wrong_training_steps_are_seen(monkeypatch):
    case = Case("memory", "mlp_1m", SHAPES["mlp_1m"])
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", lambda given, right=torch.optim.AdamW, **options: right(given, fused=True))
        patch.setattr(training_step, "RATE", 2e-3)
        assert "the step" in OPS["mlp_1m"].check("dense", case, CPU).wrong
    monkeypatch.setattr(network_ways, "gumbel_mask", lambda logits, table: (0 * logits @ table + 1).flatten(1))
    assert "2 of 4" in OPS["mlp_1m"].check("MaskLLM", case, CPU).wrong


def test_a_peer_that_is_not_installed_names_its_extra(monkeypatch):
    module = "bayesian_torch.layers.variational_layers.linear_variational"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match="peers"):
        OPS["gaussian_linear"].make("bayesian-torch", Case("ops", "gaussian_linear", LAYER), CPU)


def test_the_tables_name_what_exists():
    assert tuple(GROUPS) == NAMES
    assert set(SHAPES) == set(OPS) == {case.op for cases in GROUPS.values() for case in cases}
    for cases in GROUPS.values():
        for case in cases:
            assert set(case.shape) == set(SHAPES[case.op])


@pytest.mark.parametrize("contender", ROUTES)
def test_each_route_of_triton_is_right(monkeypatch, contender):
    routes = pytest.importorskip("stochprune.kernels.routes")
    assert (*ROUTES.values(),) == routes.ROUTES and ROUTE == routes.OVERRIDE
    case = Case("ops", "linear", LAYER)
    with pytest.raises(Absent, match="Triton"):
        OPS["linear"].check(contender, case, CPU)
    monkeypatch.setenv(backends.OVERRIDE, "triton")  # its interpreter
    verdict = OPS["linear"].check(contender, case, CPU)
    assert verdict.wrong is None and verdict.bits_equal
    monkeypatch.setitem(ROUTES, contender, "detour")
    with pytest.raises(ValueError, match="detour"):
        OPS["linear"].check(contender, case, CPU)
