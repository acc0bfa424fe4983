"""The memory of large results: used again when nothing uses it, and never before."""

from __future__ import annotations

import copy
import gc
import io
import random
import threading

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

pytest.importorskip("stochprune._C")

import stochprune as sp
from stochprune.native import results
from stochprune.native.results import FreedMemory, fresh, fresh_like, fresh_product

FLOAT = torch.float32


@pytest.fixture(autouse=True)
def freed(monkeypatch):
    """Treat results of 1 KB as large, and begin with nothing."""
    monkeypatch.setattr(results, "LARGE", 1024)
    monkeypatch.setattr(results, "freed", found := FreedMemory())
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32])
@pytest.mark.parametrize("shape", [(2048,), (40, 30), (2, 3, 400), torch.Size([1, 1024])])
def test_a_result_is_an_ordinary_tensor(shape, dtype):
    found = fresh(shape, dtype)
    assert found.shape == shape and found.dtype == dtype and found.is_contiguous() and not found._is_view()
    found.fill_(3)
    assert torch.equal(found, torch.full(shape, 3, dtype=dtype))
    assert torch.equal(copy.deepcopy(found), found) and torch.equal(
        found.share_memory_(), torch.full(shape, 3, dtype=dtype)
    )


def test_freed_memory_is_used_again(freed):
    first = fresh((32, 32), FLOAT)
    where = first.data_ptr()
    second = fresh((32, 32), FLOAT)
    assert second.data_ptr() != where and freed.nbytes == 0
    del first
    assert freed.nbytes == 4096
    assert fresh((32, 33), FLOAT).data_ptr() != where, "another size"
    assert fresh((64, 32), torch.bfloat16).data_ptr() == where, "another shape and dtype of this size"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_large_products_and_copies_of_a_shape_use_freed_memory(dtype, freed):
    a, b = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).to(dtype).mT, torch.ones(3, 40, dtype=dtype)
    for cols, large in ((2, False), (40, True)):
        for make, expected in (
            (lambda cols=cols: fresh_product(a, b[:, :cols]), (a.float() @ b[:, :cols].float()).to(dtype)),
            (lambda cols=cols: fresh_like(torch.empty(40, cols), dtype), None),
        ):
            found = make()
            assert found.shape == (40, cols) and found.dtype == dtype and found.is_contiguous()
            assert expected is None or torch.equal(found, expected)
            del found
            assert freed.nbytes == (40 * cols * dtype.itemsize if large else 0)
            freed.release()


@pytest.mark.parametrize(
    "keep",
    [
        pytest.param(lambda t: t[3:5], id="view"),
        pytest.param(lambda t: t.detach(), id="detached"),
        pytest.param(lambda t: t.numpy(), id="numpy"),
        pytest.param(lambda t: t.untyped_storage(), id="storage"),
        pytest.param(lambda t: torch.utils.dlpack.to_dlpack(t), id="dlpack"),
        pytest.param(lambda t: memoryview(t.numpy()), id="memoryview"),
        pytest.param(lambda t: torch.nn.Parameter(t), id="parameter"),
    ],
)
def test_memory_in_use_is_not_used_again(keep, freed):
    first = fresh((32, 32), FLOAT)
    where, kept = first.data_ptr(), keep(first)
    del first
    gc.collect()
    assert freed.nbytes == 0 and fresh((32, 32), FLOAT).data_ptr() != where
    del kept
    gc.collect()
    assert freed.nbytes == 2 * 4096


def test_the_budget_holds_and_the_oldest_goes_first(freed):
    freed.budget = 3 * 4096
    alive = [fresh((32, 32), FLOAT) for _ in range(5)]
    order = [each.data_ptr() for each in alive]
    while alive:
        del alive[0]
    assert freed.nbytes == freed.budget
    assert fresh((32, 32), FLOAT).data_ptr() == order[-1], "what was freed last is in the cache"
    large = fresh((64, 64), FLOAT)
    del large
    assert freed.nbytes == freed.budget, "what is larger than the budget is not kept, and drives nothing out"
    freed.release()
    assert freed.nbytes == 0
    freed.budget = 0
    fresh((32, 32), FLOAT)
    assert freed.nbytes == 0


def test_a_lower_budget_holds_from_the_next_freed_result_on(freed):
    alive = [fresh((32, 32), FLOAT) for _ in range(5)]
    del alive[:4]
    freed.budget = 0
    del alive[0]
    assert freed.nbytes == 0


def test_garbage_may_be_collected_whenever_an_object_is_made(freed):
    """The collector frees a result at each point of a search through the memory that is kept."""
    sizes = [fresh((8, 32 + i), FLOAT) for i in range(20)]
    del sizes
    kept, threshold = freed.nbytes, gc.get_threshold()
    try:
        for count in range(1, 40):
            gc.collect()
            gc.disable()
            cycle: list[object] = [fresh((8, 60), FLOAT)]
            cycle.append(cycle)
            del cycle
            spare = [(i, i) for i in range(3000)]  # as many as the interpreter may have in store: it makes new ones
            gc.set_threshold(gc.get_count()[0] + count)  # objects made before the collection
            gc.enable()
            freed.take(1 << 16)
            gc.set_threshold(*threshold)
            gc.collect()
            del spare
            assert freed.nbytes == kept + 8 * 60 * 4
    finally:
        gc.set_threshold(*threshold)
        gc.enable()


def test_a_mode_sees_nothing_when_a_result_is_freed(freed):
    """A mode such as that of ``shrink`` takes each function that it sees for one of the model."""

    seen: list[object] = []

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    first = fresh((32, 32), FLOAT)
    with Mode():
        del first
    assert freed.nbytes == 4096 and not seen


def test_memory_made_in_inference_mode_serves_outside_and_the_other_way(freed):
    def layer_of(where: int) -> torch.nn.Parameter:
        found = fresh((32, 32), FLOAT)
        assert found.data_ptr() == where and not found.is_inference()
        return torch.nn.Parameter(found.fill_(1))

    with torch.inference_mode():
        first = fresh((32, 32), FLOAT)
        assert first.is_inference()
        where = first.data_ptr()
        del first
    weight = layer_of(where)
    (weight * weight).sum().backward()
    assert weight.grad is not None and (weight.grad == 2).all()
    del weight
    with torch.inference_mode():
        again = fresh((32, 32), FLOAT)
        assert again.data_ptr() == where and again.is_inference()
    del again
    layer_of(where)


def test_files_and_shared_memory_hold_the_result_alone(freed):
    first = fresh((32, 32), FLOAT).fill_(1)
    plain = torch.ones(32, 32)
    files = [io.BytesIO(), io.BytesIO()]
    for tensor, file in zip((first, plain), files, strict=True):
        torch.save(tensor, file)
    assert files[0].tell() == files[1].tell()
    first.share_memory_()  # moves it to other memory
    assert freed.nbytes == 4096
    fresh((32, 32), FLOAT).fill_(2)
    assert torch.equal(first, plain)


def large_layer() -> torch.nn.Module:
    with torch.random.fork_rng():
        return sp.convert(torch.nn.Linear(64, 48))


def test_gradients_of_the_next_step_take_the_memory_of_the_last(freed, generator):
    layer = large_layer()
    x = torch.randn(8, 64, generator=generator)
    seen: list[set[int]] = []
    for _ in range(4):
        layer.zero_grad()
        layer(x).square().sum().backward()
        found = {p.grad.data_ptr() for p in (layer.weight, layer.mask_logits)}
        assert len(found) == 2
        seen.append(found)
    assert seen[0] == seen[1] == seen[2] == seen[3] and freed.nbytes == 0
    layer.zero_grad()
    assert freed.nbytes == 2 * 4 * 64 * 48


def test_gradients_that_are_kept_stay_right(generator):
    """Gradients of several steps, alive together, equal those of memory that is never used again."""
    start, x = large_layer(), torch.randn(8, 64, generator=generator)

    def gradients(steps: int) -> list[Tensor]:
        layer, kept = copy.deepcopy(start), []
        for step in range(steps):
            layer.zero_grad()
            layer(x).square().sum().backward()
            assert layer.weight.grad is not None
            if step % 2:
                kept.append(layer.weight.grad)
        return kept

    found = gradients(8)
    results.freed.budget = 0
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(8), strict=True))


def test_threads_never_share_memory(freed):
    """Each live result has the number that its owner wrote, while four threads allocate and free."""
    freed.budget, wrong = 8 * 4096, []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        alive: list[tuple[Tensor, float]] = []
        for i in range(2000):
            if alive and choose.random() < 0.5:
                found, number = alive.pop(choose.randrange(len(alive)))
                if not (found == number).all():
                    wrong.append((seed, i))
            else:
                number = float(seed * 10_000 + i)
                alive.append((fresh((32, choose.choice([32, 33])), FLOAT).fill_(number), number))

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 5)]
    [each.start() for each in workers], [each.join() for each in workers]
    assert not wrong and freed.nbytes <= freed.budget


def test_results_in_a_compiled_function(freed):
    """Dynamo traces the functions that make and free results there."""
    layer, other = large_layer(), large_layer()
    other.load_state_dict(layer.state_dict())
    alive: list[Tensor] = []

    def backward(loss: Tensor) -> Tensor:
        loss.backward()
        alive.clear()
        return loss + 1

    compiled = torch.compile(backward, backend="eager")
    for step in range(4):
        for each, function in ((layer, backward), (other, compiled)):
            each.zero_grad()
            alive.extend(fresh((32, 32), FLOAT).fill_(step) for _ in range(3))
            function(each(torch.ones(8, 64)).square().sum())
        assert torch.equal(layer.weight.grad, other.weight.grad)
        assert torch.equal(layer.mask_logits.grad, other.mask_logits.grad)
        found = [fresh((32, 32), FLOAT) for _ in range(8)]
        assert len({each.data_ptr() for each in found}) == 8
        del found
