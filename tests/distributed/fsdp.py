"""FSDP2 in four processes: what one process computes, with the same masks."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

import stochprune as sp
from stochprune.shards import is_dtensor
from stochprune.training import StochasticRounding, step_in_backward
from tests.distributed.networks import assert_close, batch, gradients, loss, masked, masks, mlp, whole


def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (4,))


def sharded(model: nn.Module, **options) -> nn.Module:
    return sp.distributed.shard(model, [model[2]], **options)


def own(x: torch.Tensor) -> torch.Tensor:
    return x.chunk(dist.get_world_size())[dist.get_rank()]


def pair(**options) -> tuple[nn.Module, nn.Module]:
    """Return a network in this process alone, and the same one sharded; its 6 units are uneven over 4 processes."""
    return mlp(6, **options), sharded(mlp(6, **options))


def check_forward_and_gradients(folder: Path) -> None:
    one, split = pair()
    copies = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "dp"))  # hybrid: two copies, in two parts each
    hybrid = sharded(mlp(6), mesh=copies)
    for fused in (False, True):
        one.zero_grad(), split.zero_grad(), hybrid.zero_grad()
        with sp.nn.fused_masking(split) if fused else contextlib.nullcontext():
            y, found = one(batch()), split(own(batch()))
        assert torch.equal(found, own(y))
        loss(y).backward(), loss(found).backward(), loss(hybrid(own(batch()))).backward()
        assert_close(gradients(split), gradients(one))
        assert_close(gradients(hybrid), gradients(one))
    assert_close({"kept": sp.mask_loss(hybrid, l0=1.0)}, {"kept": sp.mask_loss(one, l0=1.0)})
    one.eval(), split.eval()
    assert torch.equal(split(own(batch())), own(one(batch())))


def check_mixed_precision_leaves_the_masks(folder: Path) -> None:
    """In bfloat16 the product of ones is the number of weights that are kept, exactly."""

    def ones() -> nn.Module:
        model = mlp(6)
        with torch.no_grad():
            for layer in sp.nn.masked_layers(model).values():
                layer.weight.fill_(1), layer.bias.zero_()
        return model

    one, split = ones(), sharded(ones(), param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    x = torch.ones(4, 6)
    kept, found = one[0](x), split[0]  # a part alone is no root for FSDP
    seen = []
    found.register_forward_hook(
        lambda module, inputs, y: seen.append((y, module.mask_logits.dtype, module.weight.dtype))
    )
    loss(split(own(x))).backward()
    ((y, *dtypes),) = seen
    assert dtypes == [torch.float32, torch.bfloat16]
    assert y.dtype == torch.bfloat16 and torch.equal(y.float(), own(kept))
    assert all(parameter.grad.dtype == torch.float32 for parameter in split.parameters())


def check_a_policy_that_casts_logits_is_refused(folder: Path) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for inner in (False, True):
        model = mlp()
        if inner:
            fully_shard(model[2], mp_policy=policy)
        fully_shard(model, mp_policy=policy)
        with pytest.raises(ValueError, match=r"torch\.bfloat16"):
            model(own(batch()))
    model = mlp()
    fully_shard(model)
    assert torch.equal(model(own(batch())), own(mlp()(batch())))  # without a policy torch's own call will do
    narrow = mlp().to(torch.bfloat16)
    fully_shard(narrow, mp_policy=policy)
    narrow(own(batch()).bfloat16())  # nothing is cast


def check_blocks_are_refused(folder: Path) -> None:
    for blocks, named in (
        (lambda m: [m], "Sequential"),
        (lambda m: [nn.Linear(1, 1)], "Linear"),
        (lambda m: [m[0]], "MaskedLinear"),
        (lambda m: [m[2], m[2][0]], "MaskedLinear"),
    ):
        model = mlp()
        with pytest.raises(ValueError, match=named):
            sp.distributed.shard(model, blocks(model))
    split = sharded(mlp())
    with pytest.raises(ValueError, match="sharded already"):
        sharded(split)
    with pytest.raises(ValueError, match=r"torch\.int8"):
        sharded(mlp(), param_dtype=torch.int8)


def check_what_a_sharded_model_cannot(folder: Path) -> None:
    split = sharded(sp.nn.add_lora(mlp(), 2, include="0.weight"))
    for change in (sp.nn.add_lora, sp.nn.merge_lora):
        with pytest.raises(ValueError, match=f"{change.__name__}.*FSDP"):
            change(split)
    data = [(own(batch()), torch.arange(2))]
    for score in (sp.scores.snip, sp.scores.synflow, sp.scores.wanda):
        with pytest.raises(ValueError, match=r"split over processes"):
            score(split, nn.functional.cross_entropy, data)


def check_budgets(folder: Path) -> None:
    for options in (
        {"schedule": "cubic", "steps": 4},
        {"scope": "layer"},
        {"kind": "penalty"},
    ):
        one, split = pair()
        budgets = [sp.Budget(model, 0.7, **options) for model in (one, split)]
        for _ in range(3):
            for model, budget, x in ((one, budgets[0], batch()), (split, budgets[1], own(batch()))):
                optimizer = torch.optim.SGD(sp.parameter_groups(model, lr=0.1), lr=0.1)
                (loss(model(x)) + budget.penalty()).backward()
                optimizer.step()
                model.zero_grad()
                budget.step()
            assert_close(dict(split.named_parameters()), dict(one.named_parameters()))
        found, expected = (budget.end_epoch() for budget in budgets[::-1])
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
        again = sp.Budget(split, 0.7, **options)
        again.load_state_dict(budgets[1].state_dict())
        assert again.end_epoch() == pytest.approx(found)


def check_kl_terms(folder: Path) -> None:
    one, split = pair()
    prior = {name: torch.zeros_like(layer.mask_logits) for name, layer in sp.nn.masked_layers(one).items()}
    terms = [sp.mask_loss(model, l0=0.1, kl=1.0, prior_logits=prior) for model in (one, split)]
    for term in terms:
        term.backward()
    assert_close({"price": terms[1]}, {"price": terms[0]})
    assert_close(gradients(split), gradients(one))
    for model in (one, split):
        model.zero_grad()
        sp.Budget(model, kind="kl", strength=1.0)  # a prior that is split like the logits
    assert_close(masks(split, 9), masks(one, 9), tolerance=0.0)


def check_from_scores(folder: Path) -> None:
    """With equal scores too, whose masks depend on positions; scores of one process are the reference."""
    one, split = pair()
    for rounded in (False, True):
        scores = [sp.scores.magnitude(model) for model in (one, split)]
        if rounded:
            scores = [{name: (value * 2).round() for name, value in each.items()} for each in scores]
            scores = [{name: torch.where(v == 0, -0.0, v) for name, v in each.items()} for each in scores]
        for scope in ("global", "layer", "row"):
            for sparsity in (0.3, 0.6) if scope == "global" else (0.6,):
                ties = [
                    {name: layer.mask_logits.detach() for name, layer in sp.nn.masked_layers(m).items()}
                    for m in (one, split)
                ]
                for options in ({}, {"ties": 0}):
                    given = [{"ties": each} if options else {} for each in ties]
                    want, found = (
                        sp.masks.from_scores(each, sparsity, scope, allow_empty=True, **with_ties)
                        for each, with_ties in zip(scores, given, strict=True)
                    )
                    assert all(torch.equal(whole(found[name]), want[name]) for name in want), (rounded, scope, sparsity)
                    assert sp.masks.sparsity(found) == sp.masks.sparsity(want)
    for pattern, sparsity in (("rows", 0.5), ("2x2", 0.5), ("1:2", 0.5)):
        want, found = (sp.masks.from_scores(each, sparsity, pattern=pattern, allow_empty=True) for each in scores)
        assert all(torch.equal(whole(found[name]), want[name]) for name in want), pattern
    double = [{name: value.double() for name, value in each.items()} for each in scores]
    want, found = (sp.masks.from_scores(each, 0.4) for each in double)
    assert all(torch.equal(whole(found[name]), want[name]) for name in want)
    with pytest.raises(ValueError, match="NaN"):
        sp.masks.from_scores({name: value / 0 * 0 for name, value in scores[1].items()}, 0.5)


def check_hardened_weights(folder: Path) -> None:
    for options in ({}, {"sparsity": 0.5, "scope": "row"}):
        one, split = pair()
        found = sp.distributed.hardened_state(split, **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            want = sp.harden(one, **options).state_dict()
        assert_close(found, want, tolerance=0.0)
        with pytest.raises(ValueError, match="hardened_state"):
            sp.harden(split)
        dense = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 6), nn.ReLU()), nn.Linear(6, 4))
        fully_shard(dense)
        set_model_state_dict(dense, found)
        assert torch.equal(dense(own(batch())), own(one(batch())))
        for model in (split, dense):
            with pytest.raises(ValueError, match="save_hardened"):
                sp.shrink(model, batch())
    attention = masked(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)))
    plain = masked(nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)))
    sp.distributed.shard(attention)
    assert_close(sp.distributed.hardened_state(attention), sp.harden(plain).state_dict(), tolerance=0.0)


def check_patterns_and_estimators(folder: Path) -> None:
    """Masks of groups and soft gates: forward, price, cut."""

    def make(pattern: str | None) -> nn.Module:
        model = masked(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 8))), pattern=pattern)
        for layer in sp.nn.masked_layers(model).values():
            layer.estimator = "hard_concrete" if pattern is None else layer.estimator
        return model

    for pattern in (None, "1:2", "rows", "2x2"):
        one, split = make(pattern), sharded(make(pattern))
        assert torch.equal(split(own(batch(features=8))), own(one(batch(features=8)))), pattern
        split.state_dict()  # frees what the forward pass has gathered
        assert_close({"price": sp.mask_loss(split, l0=1.0)}, {"price": sp.mask_loss(one, l0=1.0)})
        found = sp.distributed.hardened_state(split, None if pattern in (None, "1:2") else 0.5)
        want = sp.harden(one, None if pattern in (None, "1:2") else 0.5).state_dict()
        assert_close(found, want, tolerance=0.0 if pattern else 1e-6)  # a soft gate is rounded


def check_hardened_files(folder: Path) -> None:
    from safetensors.torch import load_file

    def without_a_unit() -> nn.Module:
        model = mlp(6)
        model[0].mask_logits.data[2] = -20.0
        return model

    one, split = without_a_unit(), sharded(without_a_unit())
    sp.distributed.save_hardened(split, folder / "model", 0.5)
    dist.barrier()
    (file,) = (folder / "model").glob("*.safetensors")
    plain = sp.harden(mlp(6), 0.5)
    plain.load_state_dict(load_file(file))
    assert_close(plain.state_dict(), sp.harden(one, 0.5).state_dict(), tolerance=0.0)
    smaller = sp.shrink(plain, batch())
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in plain.parameters())
    assert_close({"y": fully_shard(smaller)(own(batch()))}, {"y": own(plain(batch()))})


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss(model(x)).backward()
    optimizer.step()


def check_step_in_backward(folder: Path) -> None:
    one, split, early = mlp(6), sharded(mlp(6)), sharded(mlp(6))
    optimizers = [torch.optim.AdamW(sp.parameter_groups(model, lr=0.01)) for model in (one, split)]
    inside = step_in_backward(sp.parameter_groups(early, lr=0.01), torch.optim.AdamW)
    for _ in range(3):
        for model, optimizer, x in ((one, optimizers[0], batch()), (split, optimizers[1], own(batch()))):
            step(model, optimizer, x)
        inside.zero_grad()
        loss(early(own(batch()))).backward()
        assert all(parameter.grad is None for parameter in early.parameters())
        inside.step()
    for (name, found), want in zip(early.named_parameters(), split.parameters(), strict=True):
        assert torch.equal(whole(found), whole(want)), name
    assert_close(dict(early.named_parameters()), dict(one.named_parameters()), tolerance=1e-4)


def check_stochastic_rounding(folder: Path) -> None:
    results = []
    for model, x in ((mlp(6), batch()), (sharded(mlp(6)), own(batch()))):
        optimizer = StochasticRounding(sp.parameter_groups(model.bfloat16(), lr=0.01), torch.optim.AdamW, model=model)
        step(model, optimizer, x.bfloat16())
        results.append(dict(model.named_parameters()))
    assert_close(results[1], results[0], tolerance=0.05)  # bfloat16 gradients differ by the order of their sums


def check_checkpoint_of_four_resumes_on_two_and_on_one(folder: Path) -> None:
    """The next masks, and the parameters after the next step, are those of the run that goes on."""
    split = sharded(mlp(6))
    optimizer = torch.optim.AdamW(sp.parameter_groups(split, lr=0.01))
    budget = sp.Budget(split, 0.6, schedule="cubic", steps=5)
    for _ in range(3):
        step(split, optimizer, own(batch()))
        budget.step()
    model_state, optimizer_state = get_state_dict(split, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "budget": budget.state_dict()}
    dcp.save(state, checkpoint_id=folder / "checkpoint")
    saved = {name: whole(value).clone() for name, value in get_model_state_dict(split).items()}
    next_masks = masks(split, 3)
    moments = {name: whole(optimizer.state[p]["exp_avg"]).clone() for name, p in split.named_parameters()}
    step(split, optimizer, own(batch()))
    budget.step()
    after = {name: whole(value) for name, value in split.named_parameters()}

    two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "dp"))  # two groups of two
    for resumed, x in (
        (sharded(mlp(6), mesh=two["dp"]), batch().chunk(2)[two.get_local_rank("dp")]),
        (mlp(6), batch()),
    ):
        with torch.no_grad():
            for parameter in resumed.parameters():
                parameter.zero_()
        optimizer = torch.optim.AdamW(sp.parameter_groups(resumed, lr=0.01))
        model_state, optimizer_state = get_state_dict(resumed, optimizer)
        state = {"model": model_state, "optimizer": optimizer_state}
        dcp.load(state, checkpoint_id=folder / "checkpoint")
        set_state_dict(resumed, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        assert_close(get_model_state_dict(resumed), saved, tolerance=0.0)
        assert_close({n: optimizer.state[p]["exp_avg"] for n, p in resumed.named_parameters()}, moments, tolerance=0.0)
        assert int(resumed[0].mask_draw) == 3
        assert_close(masks(resumed, 3), next_masks, tolerance=0.0)
        again = sp.Budget(resumed, 0.6, schedule="cubic", steps=5)
        again.load_state_dict(_loaded(again, folder / "checkpoint"))
        step(resumed, optimizer, x)
        again.step()
        assert_close(dict(resumed.named_parameters()), after)
        assert again.end_epoch() == pytest.approx(budget.end_epoch(), rel=1e-5, abs=1e-6)


def _loaded(budget: sp.Budget, checkpoint: Path) -> dict:
    """Return a stored budget; for a model that is not split from the whole file, because it holds bits as bytes."""
    state = {"budget": budget.state_dict()}
    if is_dtensor(budget.logits[0]):
        dcp.load(state, checkpoint_id=checkpoint)
        return state["budget"]
    file = checkpoint.parent / f"whole-{dist.get_rank()}.pt"
    dcp_to_torch_save(checkpoint, file)
    return torch.load(file, weights_only=True)["budget"]
