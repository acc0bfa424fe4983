"""Run parts of the package on a fake device and report those that mix it with the CPU; see test_fake_device.

The tensors have devices, dtypes and shapes but no values. An operation between two devices raises an error, as on a
GPU. A value that is read is 0 if it is an integer, and 1/4 and 1/2 in turn if it is floating; a condition is true,
except the result of ``any``. The device is a torch backend of its own, because autograd needs a device guard, which
builds for the CPU lack for CUDA. A torch backend stays registered until its process ends, so this file is a program.
"""

from __future__ import annotations

import itertools
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import stochprune as sp
from stochprune import models, scores
from stochprune.data import Batches
from stochprune.data.augment import Augmented
from stochprune.data.splits import split
from stochprune.pac_bayes import Prior, SelfBoundConfig, make_posterior, self_bound
from stochprune.pac_bayes.certify import network_losses
from stochprune.training import FinetuneConfig
from stochprune.training.config import WeightConfig
from stochprune.training.evaluate import error, predict, stochastic_error
from stochprune.training.soft_threshold import SoftThresholdConfig, train_soft_threshold
from stochprune.training.weights import train_weights

_setup_privateuseone_for_python_backend("pretend")
DEVICE = torch.device("pretend:0")
SHAPE = (1, 8, 8)
aten = torch.ops.aten


class Pretend(FakeTensorMode):
    numbers = itertools.cycle((0.25, 0.5))  # not one number, whose differences would be 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default:
            (value,) = args
            if value.dtype == torch.bool:
                return not hasattr(value, "of_any")
            return next(self.numbers) if value.dtype.is_floating_point else 0
        if func is aten.nonzero.default:
            (value,) = args
            with self:
                return torch.zeros(1, value.dim(), dtype=torch.int64, device=value.device)
        found = super().__torch_dispatch__(func, types, args, kwargs)
        if func in (aten.any.default, aten.any.dim):
            found.of_any = True
        return found


ROUNDS = ("synflow", "iterative_snip", "force")


def there(build: Callable[[], nn.Module], device: torch.device = DEVICE) -> nn.Module:
    """A model with its tensors on the device."""
    with unset_fake_temporarily():
        model = build()
    copies: dict[int, Tensor] = {}
    for module in model.modules():
        for members in (module._parameters, module._buffers):
            for name, tensor in members.items():
                if tensor is None:
                    continue
                copy = tensor.detach().to(device)
                if isinstance(tensor, nn.Parameter):
                    copy = nn.Parameter(copy, tensor.requires_grad)
                members[name] = copies.setdefault(id(tensor), copy)
    return model


def lenet() -> nn.Module:
    return models.lenet_300_100(64, 10, seed=0)


def examples(channels: int = 1) -> tuple[Tensor, Tensor]:
    return torch.zeros(40, channels, 8, 8, device=DEVICE), torch.zeros(40, dtype=torch.int64, device=DEVICE)


def batches() -> Batches:
    return Batches(*examples(), 20)


def weights(optimizer: str) -> None:
    model = there(lenet)
    masks = {
        name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in scores.prunable_weights(model).items()
    }
    config = WeightConfig(1, 0.1, optimizer=optimizer, schedule="cosine")
    train_weights(model, Augmented(batches(), 1, flip=True), config, masks=masks)


def residual() -> None:
    model = there(lambda: models.resnet20(1, 10, width=2, seed=0))
    train_weights(model, batches(), WeightConfig(1))


def tuning(**options: Any) -> None:
    model = there(lambda: sp.convert(lenet(), keep_kept=0.9))
    sp.finetune(model, batches(), FinetuneConfig(epochs=1, **options))


def evaluation() -> None:
    model = there(lambda: sp.convert(lenet()))
    x, y = (tensor.to("cpu") for tensor in examples())
    error(predict(model, x), y)
    stochastic_error(model, x, y, 2)


def score(name: str, **options: Any) -> None:
    model = there(lenet)
    found = scores.compute(name, model, F.cross_entropy, batches(), sparsity=0.5, seed=0, **options)
    assert all(value.device == DEVICE for value in found.values())


def prior() -> Prior:
    return Prior(there(lambda: sp.convert(lenet()).requires_grad_(False).eval()), ())


def spread(kind: str) -> None:
    """The budget of a model whose layers are on two devices."""
    devices = (DEVICE, torch.device("cpu"))
    model = nn.Sequential(*(there(lambda i=i: sp.nn.MaskedLinear(8, 4, stream=i), d) for i, d in enumerate(devices)))
    budget = sp.Budget(model, sparsity=None if kind == "kl" else 0.5, kind=kind)
    budget.penalty()
    budget.step()
    budget.end_epoch()


def learning(family: str, **options: Any) -> None:
    with unset_fake_temporarily():
        here = split(torch.arange(40 * 64.0).view(40, *SHAPE), torch.arange(40) % 10, 0).certify
    x, y = examples()
    part = replace(here, x=x, y=y)
    self_bound(prior(), part, SelfBoundConfig(epochs=1, batch_size=20, **options), family=family)


def draws(family: str, loss: str) -> None:
    posterior = make_posterior(prior(), family)
    posterior.kl()
    x, y = examples()
    with mock.patch.object(type(posterior), "require_one_draw"):
        losses = network_losses(posterior, x.unflatten(0, (2, -1)), y.unflatten(0, (2, -1)), loss, 0, 0)
    assert losses.device == DEVICE


def mixing() -> None:
    lenet_there = there(lenet)
    lenet_there(examples()[0].to("cpu"))


CASES: dict[str, Callable[[], None]] = {"mixing": mixing, "residual": residual, "evaluation": evaluation}
CASES["soft threshold"] = lambda: train_soft_threshold(there(lenet), batches(), SoftThresholdConfig(epochs=1))
for _o in ("adam", "sgd"):
    CASES[f"weights {_o}"] = lambda o=_o: weights(o)
for _b, _e in itertools.product(("shift", "penalty", "kl"), ("straight_through", "concrete")):
    CASES[f"finetune {_b} {_e}"] = lambda b=_b, e=_e: tuning(budget=b, estimator=e)
for _b in ("shift", "penalty", "kl"):
    CASES[f"spread {_b}"] = lambda b=_b: spread(b)
for _s in scores._SCORES:
    CASES[f"score {_s}"] = lambda s=_s: score(s, **({"rounds": 2} if s in ROUNDS else {}))
CASES["score k_starts both"] = lambda: score("k_starts", fitness="both")
for _f in ("masks", "gaussian", "spike_and_slab"):
    for _o in ("quadratic", "lambda", "classic", "kl"):
        CASES[f"self_bound {_f} {_o}"] = lambda f=_f, o=_o: learning(f, objective=o)
    CASES[f"self_bound {_f} local"] = lambda f=_f: learning(f, estimator="local_reparameterisation")
    for _l in ("zero_one", "cross_entropy"):
        CASES[f"draws {_f} {_l}"] = lambda family=_f, loss=_l: draws(family, loss)


def main() -> None:
    found = {}
    for name, case in CASES.items():
        try:
            # A tensor without values has no digest.
            with (
                mock.patch("stochprune.pac_bayes.prior.tensor_digests", return_value={}),
                Pretend(allow_non_fake_inputs=True),
            ):
                case()
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
