"""The kinds of arguments, from their annotations."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune.arguments import check_fields, checked, fits, in_words

T = TypeVar("T")
FITTING = [
    (int, [0, -1, 2**70, np.int64(3)], [True, 1.5, "1", None, torch.tensor(1)]),
    (float, [0, 1.5, np.float32(2), -1e308, float("nan")], [10**400, True, "1", 1j, None]),
    (str, ["", "x"], [b"x", None, 1]),
    (bool, [True], [1, "true"]),
    (int | None, [None, 3], [1.5, "x"]),
    (Literal["a", "b"], ["a", "c"], [["a"], None]),
    (
        Tensor,
        [torch.ones(1), nn.Parameter(torch.ones(1))],
        [np.ones(1), [1.0], torch.eye(2).to_sparse(), torch.ones(1, device="meta"), 1j * torch.ones(1)],
    ),
    (nn.Module, [nn.ReLU()], [nn.ReLU, "x"]),
    (Path | str, ["x", Path("x")], [b"x", 1]),
    (tuple[float, ...], [(), (1.0, 2)], [[1.0], ("x",), (None,)]),
    (tuple[int, str], [(1, "x")], [(1,), ("x", 1)]),
    (Sequence[int], [[1], (1, 2)], ["12", {1}, [1.5], 3]),
    (Mapping[str, Tensor], [{}, {"a": torch.ones(1)}], [{"a": 1}, {1: torch.ones(1)}, []]),
    (Iterable[tuple[Tensor, Tensor]], [[], iter(())], [3, None]),
    (Callable[[int], int], [len, int], ["len"]),
    (Any, [1, None], []),
    (T, [1, None], []),
]


@pytest.mark.parametrize(("kind", "good", "bad"), FITTING, ids=lambda value: str(value)[:30])
def test_values_fit_their_annotations(kind, good, bad):
    assert [value for value in good if not fits(kind, value)] == []
    assert [value for value in bad if fits(kind, value)] == []
    assert "typing" not in in_words(kind)


SENTENCES = {
    list[int]: "a list of integers",
    list[list[float]] | None: "a list of lists of numbers or None",
    Sequence[str | None]: "a sequence of (texts or None)",
    list[nn.Module]: "a list of instances of torch.Module",
    Mapping[str, nn.Module | float] | None: "a mapping from texts to (instances of torch.Module or numbers) or None",
    dict[str, list[bool]]: "a mapping from texts to lists of values True or False",
    str | type | Sequence[str | type]: "text or a class or a sequence of (texts or classes)",
    tuple[float, float]: "a tuple of 2 numbers",
    tuple[str, int, Tensor]: "a tuple of text, an integer and a dense and real torch.Tensor with values",
    tuple[Path, ...]: "a tuple of instances of pathlib.Path",
    Callable[[int], int] | None: "a function or None",
    Sequence[Callable[[int], int]]: "a sequence of functions",
    list[Any]: "a list of objects",
    Iterable[tuple[Tensor, Tensor]]: "an iterable of tuples of 2 dense and real torch.Tensors with values",
    list[Literal["a", "b"]] | Literal[False]: "a list of values that are one of a, b or False",
    type[nn.Module]: "a class",
    nn.Linear | type[nn.Linear] | type[nn.Conv2d]: "an instance of torch.Linear or a class",
}


@pytest.mark.parametrize("kind", SENTENCES, ids=str)
def test_annotations_in_words(kind):
    assert in_words(kind) == SENTENCES[kind]


def public_annotations():
    """The annotations of all public functions and configurations, by the argument's name."""
    for module in (sp, sp.functional, sp.nn, sp.bounds, sp.scores, sp.masks, sp.data, sp.models):
        for name in getattr(module, "__all__", dir(module)):
            function = getattr(module, name)
            is_error = isinstance(function, type) and issubclass(function, Exception)
            if not isinstance(function, types.FunctionType | type) or is_error:
                continue
            for parameter in inspect.signature(function, eval_str=True).parameters.values():
                if parameter.annotation is not parameter.empty:
                    yield f"{name}: {parameter.name}", parameter.annotation


def test_every_public_annotation_is_a_phrase():
    found = dict(public_annotations())
    assert len(found) > 300
    wrong = re.compile(r"\b(a|an|of|to|from|or) (of|to|or)\b|\b(a|an) (a|an)\b|typing|builtins|collections|<")
    assert {name: in_words(kind) for name, kind in found.items() if wrong.search(in_words(kind))} == {}


@checked
def scaled(x: Tensor, factor: float = 1.0, *names: str, later: Later | None = None) -> Tensor:
    """Docstring."""
    return x * factor


class Later:
    pass


def test_a_checked_function_names_itself_the_argument_and_the_value():
    x = torch.ones(2)
    assert torch.equal(scaled(x, 2, "a", later=Later()), 2 * x)
    with pytest.raises(TypeError, match=r"scaled: factor.*got 'x'"):
        scaled(x, factor="x")
    with pytest.raises(TypeError, match=r"scaled: x.*got ndarray float64 \(3,\)"):
        scaled(np.ones(3))
    with pytest.raises(TypeError, match=r"scaled: later.*got 3"):
        scaled(x, later=3)
    with pytest.raises(TypeError, match=r"scaled\(\) .*'x'"):
        scaled()
    assert scaled.__doc__ == "Docstring." and scaled.__name__ == "scaled"


def test_a_refusal_is_one_short_line():
    with pytest.raises(TypeError) as caught:
        scaled([list(range(1000))] * 1000 + ["\n"])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@dataclasses.dataclass
class Levels:
    levels: tuple[float, ...]


def test_fields_must_be_finite():
    check_fields(Levels((0.5, 1)))
    with pytest.raises(ValueError, match=r"Levels: levels must be a tuple of finite numbers, got \(nan,\)"):
        check_fields(Levels((float("nan"),)))
