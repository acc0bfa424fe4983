"""Two GPUs in one process: the current device decides nothing."""

from __future__ import annotations

import pytest
import torch

import stochprune as sp
from stochprune import functional
from tests.functional.ops import OPS

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
DEVICES = ("cuda:0", "cuda:1")


@pytest.mark.parametrize("name", OPS)
def test_every_op_on_the_device_that_is_not_current(name, generator):
    """Results and gradients are those of the same device made current, bit for bit."""
    made, found = OPS[name].make(generator), []
    for current in DEVICES:
        with torch.cuda.device(current):
            options = {n: o.to(DEVICES[1]) if isinstance(o, torch.Tensor) else o for n, o in OPS[name].options.items()}
            tensors = {n: t.detach().to(DEVICES[1]).requires_grad_(t.requires_grad) for n, t in made.items()}
            out = OPS[name]._replace(options=options).run(**tensors)
            assert all(y.device == torch.device(DEVICES[1]) for y in out)
            if out[0].requires_grad:
                sum(y.double().sum() for y in out).backward()
            found.append([*out, *(t.grad for t in tensors.values() if t.grad is not None)])
            assert torch.cuda.current_device() == torch.device(current).index
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_over_two_devices_samples_the_masks_of_one(fused, generator):
    def model() -> torch.nn.Sequential:
        return sp.convert(sp.models.lenet_300_100(64, 10, seed=0)).train()

    x = torch.randn(8, 64, generator=generator)
    one, two = model().to(DEVICES[0]), model().to(DEVICES[0])
    last = two[-1].to(DEVICES[1])
    last.register_forward_pre_hook(lambda module, args: (args[0].to(DEVICES[1]),))
    found = []
    for network in (one, two):
        with sp.nn.fused_masking(network) if fused else torch.enable_grad():
            y = network(x.to(DEVICES[0]))
        y.square().mean().backward()
        found.append([y.cpu(), *(p.grad.cpu() for p in network.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_replicas_in_two_threads(generator):
    x, weight, logits = (torch.randn(*s, generator=generator) for s in ((64, 96), (48, 96), (48, 96)))
    at = {"seed": 1, "draw": 2, "stream": 3}
    results = torch.nn.parallel.parallel_apply(
        [lambda *t: functional.masked_linear(*t, **at)] * 2,
        [tuple(t.to(device) for t in (x, weight, logits)) for device in DEVICES],
        devices=[*DEVICES],
    )
    torch.testing.assert_close(results[0].cpu(), results[1].cpu(), rtol=1e-4, atol=1e-4)  # GPUs may differ in kind
