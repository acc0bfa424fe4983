"""Rules of all configurations: ranges, tuples, digests."""

from __future__ import annotations

import dataclasses

import pytest

from stochprune.runs import Config, digest, option
from stochprune.runs.config import FRACTION, POSITIVE, PROBABILITY, at_least, at_most


@dataclasses.dataclass(frozen=True)
class Sample(Config):
    count: int = option(1, "A count.", at_least(1))
    size: float = option(1.0, "A size.", POSITIVE)
    share: float = option(0.0, "A share.", FRACTION)
    chance: float = option(0.5, "A chance.", PROBABILITY)
    rate: float = option(0.1, "A rate.", at_most(0.5))
    parts: tuple[float, ...] = option((0.1, 0.2), "Parts.", FRACTION)
    name: str = option("", "A name.")


GOOD = {
    "count": (1, 2**64 - 1),
    "size": (1e-300, 1e300),
    "share": (0, 0.99),
    "chance": (1e-9, 0.99),
    "rate": (1e-9, 0.5),
}
BAD = {"count": (0, -1, 2**64), "size": (0.0, -1.0), "share": (-1e-9, 1.0), "chance": (0.0, 1.0), "rate": (0.0, 0.51)}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_ends_that_belong_to_a_range(name, value):
    assert getattr(Sample(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_ends_that_do_not(name, value):
    with pytest.raises(ValueError, match=f"^Sample: {name} .* got {value}$"):
        Sample(**{name: value})


@pytest.mark.parametrize(("parts", "shown"), [((), "none"), ((0.1, 0.1), "0.1, 0.1"), ((0.1, 1.0), "1.0")])
def test_each_item_of_a_tuple_is_checked(parts, shown):
    with pytest.raises(ValueError, match=f"^Sample: parts .* got {shown}$"):
        Sample(parts=parts)


def test_a_digest_is_of_the_class_and_of_every_value():
    @dataclasses.dataclass(frozen=True)
    class Other(Sample):
        pass

    configs = (Sample(), Sample(count=2), Sample(parts=(0.2, 0.1)), Sample(name="x"), Other())
    assert len({digest(config) for config in configs}) == len(configs)
    assert digest(Sample()) == digest(Sample(count=1)) and len(digest(Sample())) == 12
    assert digest(Sample(count=2), exclude=("count",)) == digest(Sample(count=3), exclude=("count",))
