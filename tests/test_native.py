"""Parts that only the C++ backend has: instruction sets, the workspace, threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from stochprune import reference, rng

native = pytest.importorskip("stochprune.native")
from stochprune import _C  # noqa: E402
from stochprune.address import KLTerm, Mask  # noqa: E402
from stochprune.doctor.self_test import instructions  # noqa: E402
from stochprune.functional import masked_linear  # noqa: E402
from stochprune.native.masked import SHARED  # noqa: E402
from stochprune.native.workspace import Workspace, workspace  # noqa: E402

AT = Mask(torch.tensor([1]), torch.tensor([2]), 3)
TWO = AT._replace(draw=torch.tensor([2, 9]))
ALL = (True, True, True)


def masked_weight(weight, logits):
    return native.masked_weight(weight, logits, mask=AT, dtype=weight.dtype)[0].clone()


@pytest.fixture(params=_C.instruction_sets())
def instruction_set(request):
    with instructions(request.param):
        yield request.param


@pytest.fixture
def budget(monkeypatch):
    def use(size):
        monkeypatch.setattr(Workspace, "budget", size)
        workspace.release()

    yield use
    workspace.release()


def test_thresholds_are_exact_at_every_boundary(instruction_set):
    """Around each of the 32,766 logits where the threshold steps, where float arithmetic alone would err."""
    edges = torch.logit((torch.arange(2, 32768).double() - 0.5) / 32768).float()
    logits = [edges]
    up = down = edges
    for _ in range(6):
        up, down = (torch.nextafter(t, torch.full_like(t, s)) for t, s in ((up, 99.0), (down, -99.0)))
        logits += [up, down]
    logits += [edges * (1 + s) for s in (1e-6, -1e-6, 1e-5, -1e-5, 1e-4, -1e-4)]
    every = torch.cat(logits)
    assert torch.equal(native.threshold_from_logits(every).int(), rng.threshold_from_logits(every).int())


def test_masks_from_logits_are_those_of_the_thresholds(instruction_set):
    """The kernels that form thresholds in registers decide every weight as the exact thresholds do."""
    logits = torch.linspace(-14, 14, 1 << 20).view(1024, 1024)
    logits[0, :2] = torch.tensor([float("inf"), float("-inf")])
    weight = torch.ones(1024, 1024)
    masked = masked_weight(weight, logits)
    keep = native.keep_mask(native.threshold_from_logits(logits), mask=AT)
    assert torch.equal(masked.bool(), keep)


def test_panels_give_the_whole_layers_result(budget, generator):
    x, grad = torch.randn(2, 8, 100, generator=generator), torch.randn(2, 8, 37, generator=generator)
    w, logits = torch.randn(2, 37, 100, generator=generator)
    results = []
    for size in (64 << 20, 100 * 4 * 5, 1):
        budget(size)
        y = native.masked_linear(x, w, logits, None, mask=TWO)
        results.append((y, *native.masked_linear_backward(grad, x, w, logits, mask=TWO, needs=ALL)))
        if size < 64 << 20:
            assert workspace.nbytes <= max(size, 400)
    for parts in zip(*results, strict=True):
        torch.testing.assert_close(parts[1], parts[0])
        torch.testing.assert_close(parts[2], parts[0])


def test_the_workspace_is_all_that_is_kept(budget):
    budget(64 << 20)
    layers = [torch.randn(64, 64, generator=torch.Generator()) for _ in range(8)]
    for w in layers:
        native.masked_linear(torch.ones(1, 1, 64), w, w, None, mask=AT)
    assert workspace.nbytes == 64 * 64 * 4


@pytest.mark.parametrize("estimator", ["straight_through", "straight_through_concrete", "concrete"])
@pytest.mark.parametrize("together", [1, 2, 8])  # draws of a pass
def test_draws_that_share_thresholds_have_the_masks_of_single_draws(together, estimator, budget, generator):
    draws = torch.arange(SHARED + 1)
    x, grad = (torch.randn(len(draws), 8, n, generator=generator) for n in (100, 37))
    w, logits = torch.randn(2, 37, 100, generator=generator)
    mask = AT._replace(draw=draws, estimator=estimator, temperature=0.7)
    budget(together * w.nbytes)
    y = native.masked_linear(x, w, logits, None, mask=mask)
    dx, dweight, dlogits = native.masked_linear_backward(grad, x, w, logits, mask=mask, needs=ALL)
    sums = torch.zeros_like(w), torch.zeros_like(w)
    for i in range(len(draws)):
        one = mask.one(i)
        torch.testing.assert_close(y[i : i + 1], native.masked_linear(x[i : i + 1], w, logits, None, mask=one))
        found = native.masked_linear_backward(grad[i : i + 1], x[i : i + 1], w, logits, mask=one, needs=ALL)
        torch.testing.assert_close(dx[i : i + 1], found[0])
        for total, part in zip(sums, found[1:], strict=True):
            total.add_(part)
    torch.testing.assert_close((dweight, dlogits), sums)


def test_draws_beside_a_cache_that_is_off_see_every_change(cache, generator):
    logits = torch.full((30, 64), 9.0)
    x, mask = torch.ones(SHARED, 1, 64), AT._replace(draw=torch.arange(SHARED))
    y = native.masked_linear(x, torch.ones(30, 64), logits, None, mask=mask)
    cache.enabled = False
    logits.data.sub_(18)
    assert (native.masked_linear(x, torch.ones(30, 64), logits, None, mask=mask) < y - 32).all()


def test_equal_panels():
    assert workspace.panels(0, 5, torch.float32) == []
    assert workspace.panels(4096, 4096, torch.float32) == [slice(0, 4096)]
    assert workspace.panels(4097, 4096, torch.float32) == [slice(0, 2049), slice(2049, 4097)]


def test_the_draws_of_small_layers_share_a_pass():
    assert workspace.draws(64, 64, torch.float32) == 64
    assert workspace.draws(4096, 4096, torch.float32) == 1
    assert workspace.draws(4097, 4096, torch.float32) == 0
    assert workspace.draws(0, 5, torch.float32) > 0


def test_more_draws_than_share_a_pass(generator, monkeypatch):
    monkeypatch.setattr(Workspace, "cached", 2 * 9 * 130 * 4)
    w, logits, prior = torch.randn(3, 9, 130, generator=generator)
    mask = AT._replace(draw=torch.arange(5), row=7, col=129)
    x, grad = torch.randn(5, 4, 130, generator=generator), torch.randn(5, 4, 9, generator=generator)
    kl = KLTerm(prior, torch.tensor(0.3, dtype=torch.float64))
    y = native.masked_linear(x, w, logits, None, mask=mask)
    torch.testing.assert_close(y, reference.masked_linear(x, w, logits, None, mask=mask))
    grads = native.masked_linear_backward(grad, x, w, logits, mask=mask, needs=ALL, kl=kl)
    expected = reference.masked_linear_backward(grad, x, w, logits, mask=mask, needs=ALL, kl=kl)
    for got, want in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_scratch_memory_keeps_few_views(budget):
    budget(64 << 20)
    seen = [workspace.take((rows, 3), torch.float32).shape for rows in range(1, 300)]
    assert seen == [(rows, 3) for rows in range(1, 300)]
    assert len(workspace._views) <= 64 and workspace.nbytes == 299 * 3 * 4


def test_results_do_not_depend_on_threads(generator):
    w, logits = torch.randn(2, 333, 257, generator=generator)
    before = torch.get_num_threads()
    try:
        outs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs.append(masked_weight(w, logits))
        assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])
    finally:
        torch.set_num_threads(before)


def test_threads_have_workspaces_of_their_own(generator):
    w, logits = torch.randn(2, 64, 64, generator=generator)
    x = torch.randn(1, 4, 64, generator=generator)
    expected = native.masked_linear(x, w, logits, None, mask=AT)
    wrong = []

    def work():
        for _ in range(50):
            if not torch.equal(native.masked_linear(x, w, logits, None, mask=AT), expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    [t.start() for t in workers], [t.join() for t in workers]
    assert not wrong


def test_an_unknown_instruction_set_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'sve'.*scalar"):
        _C.use_instruction_set("sve")


@pytest.mark.parametrize(("name", "status"), [("scalar", 0), ("amx-emulated", 0), ("sve", 1)])
def test_the_environment_chooses(name, status):
    code = "from stochprune import native; print(native.describe())"
    environment = {**os.environ, "STOCHPRUNE_CPU": name}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.returncode == status
    if status:
        assert "STOCHPRUNE_CPU" in ended.stderr and "sve" in ended.stderr and "avx" in ended.stderr
    else:
        assert ended.stdout.startswith(name) and ("tiles" in ended.stdout) == (name != "scalar")


@pytest.fixture
def cache():
    native.cache.enabled = True
    yield native.cache
    native.cache.enabled = False
    native.cache.clear()


@pytest.mark.parametrize("estimator", ["straight_through", "straight_through_concrete"])
def test_cached_thresholds_change_nothing_but_the_speed(cache, estimator, generator):
    x, grad = torch.randn(2, 4, 100, generator=generator), torch.randn(2, 4, 30, generator=generator)
    w, logits = torch.randn(2, 30, 100, generator=generator)
    mask = TWO._replace(estimator=estimator, temperature=0.7)

    def run():
        y = native.masked_linear(x, w, logits, None, mask=mask)
        return (y, *native.masked_linear_backward(grad, x, w, logits, mask=mask, needs=ALL))

    with_cache = run()
    assert cache.nbytes == 2 * 30 * 100
    cache.enabled = False
    for a, b in zip(with_cache, run(), strict=True):
        assert torch.equal(a, b)


def test_the_cache_sees_changes_and_forgets_the_dead(cache, generator):
    w, x = torch.ones(30, 64), torch.ones(1, 1, 64)
    logits = torch.full((30, 64), 9.0)
    y = native.masked_linear(x, w, logits, None, mask=AT)
    logits.sub_(18)  # as an optimiser's step would
    assert (native.masked_linear(x, w, logits, None, mask=AT) < y - 32).all()
    assert cache.nbytes == 2 * 30 * 64
    del logits
    assert cache.nbytes == 0


def test_the_cache_holds_a_layers_logits_once_over_steps(cache, generator):
    from stochprune.nn import MaskedLinear

    layer = MaskedLinear(64, 30)
    for _ in range(3):
        layer(torch.ones(2, 64)).sum().backward()
    assert cache.nbytes == 2 * 30 * 64


def test_nan_logits_are_refused_at_any_index():
    for column in (0, 63, 64, 99):
        logits = torch.zeros(3, 100)
        logits[1, column] = float("nan")
        with pytest.raises(ValueError, match="NaN"):
            masked_weight(torch.ones(3, 100), logits)
        with pytest.raises(ValueError, match="NaN"):
            native.threshold_from_logits(logits)
    masked_weight(torch.ones(1, 2), torch.tensor([[float("inf"), float("-inf")]]))


WITHOUT_MEMORY = torch.tensor([1])  # as after offloading
WITHOUT_MEMORY.untyped_storage().resize_(0)
USUAL = {
    **{"x": torch.zeros(2, 5), "weight": torch.nn.Parameter(torch.zeros(3, 5)), "logits": torch.zeros(3, 5)},
    **{"bias": None, "seed": torch.tensor([-1]), "draw": torch.tensor([2**32 - 1]), "stream": 2**31 - 1},
    **{"estimator": "concrete", "temperature": 0.5, "samples": None, "row_offset": 0, "col_offset": 0},
}


@pytest.mark.parametrize(
    "usual, given",
    [
        (True, {}),
        (True, {"bias": torch.zeros(3)}),
        (True, {"x": torch.zeros(4, 2, 5).bfloat16(), "bias": torch.zeros(3).bfloat16()}),
        (True, {"weight": torch.zeros(5, 3).T}),
        (False, {"x": torch.zeros(2, 4)}),
        (False, {"x": torch.tensor(0.0)}),
        (False, {"x": torch.zeros(2, 5).double()}),
        (False, {"x": torch.zeros(2, 5).long()}),
        (False, {"x": torch.zeros(2, 5).to_sparse()}),
        (False, {"x": [[0.0] * 5]}),
        (False, {"x": torch.nn.Buffer(torch.zeros(2, 5)).as_subclass(type("Own", (torch.Tensor,), {}))}),
        (False, {"weight": torch.zeros(3, 5, device="meta")}),
        (False, {"weight": torch.zeros(3, 5, 1)}),
        (False, {"weight": None}),
        (False, {"logits": torch.zeros(5, 3)}),
        (False, {"bias": torch.zeros(1)}),
        (False, {"bias": torch.zeros(3).bfloat16()}),
        (False, {"seed": 1}),
        (False, {"seed": torch.tensor([1.0])}),
        (False, {"draw": torch.tensor([0, 1])}),
        (False, {"draw": torch.tensor([2**32])}),
        (False, {"draw": torch.tensor([-1])}),
        (False, {"draw": torch._neg_view(torch.tensor([-3]))}),
        (False, {"draw": WITHOUT_MEMORY}),
        (False, {name: torch.zeros(1, 1).expand(1, 2**35)[:0] for name in ("x", "weight", "logits")}),
        (False, {"stream": 2**31}),
        (False, {"stream": -1}),
        (False, {"stream": 2**70}),
        (False, {"stream": True}),
        (False, {"estimator": "concret"}),
        (False, {"estimator": None}),
        (False, {"temperature": 0.0}),
        (False, {"temperature": float("nan")}),
        (False, {"temperature": float("inf")}),
        (False, {"temperature": 1}),
        (False, {"samples": 1}),
        (False, {"row_offset": 1}),
        (False, {"col_offset": torch.tensor(0)}),
    ],
)
def test_the_fast_test_of_arguments_accepts_the_usual_ones_only(usual, given):
    assert _C.usual_linear(*{**USUAL, **given}.values()) is usual


def test_the_fast_test_of_arguments_leaves_autocast_and_transforms_to_python():
    found = []
    with torch.autocast("cpu"):
        found.append(_C.usual_linear(*USUAL.values()))
    torch.func.vmap(lambda x: found.append(_C.usual_linear(*{**USUAL, "x": x}.values())) or x)(torch.zeros(4, 2, 5))
    assert found == [False, False]


@pytest.mark.parametrize("name", ["weight", "logits", "seed", "draw"])
def test_negated_views_have_their_own_sign(name, generator):
    """The memory of such a view holds the values before the sign changes."""
    given = {
        "x": torch.ones(2, 5),
        **{key: torch.randn(3, 5, generator=generator) for key in ("weight", "logits")},
        **{"seed": torch.tensor([7]), "draw": torch.tensor([3]), "stream": 1},
    }
    expected = masked_linear(**given)
    given[name] = torch._neg_view(-given[name])
    assert torch.equal(masked_linear(**given), expected)
