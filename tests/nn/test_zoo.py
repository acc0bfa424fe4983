"""The table of all layer types is complete, and none of them goes its own way past the base's forward."""

from __future__ import annotations

import stochprune as sp
from stochprune.nn.layer import MaskedLayer
from tests.nn.zoo import ZOO, make


def kinds(base: type) -> set[type]:
    return {base} | {kind for child in base.__subclasses__() for kind in kinds(child)}


def test_every_layer_type_is_in_the_zoo():
    present = {type(layer) for name in ZOO for layer in sp.nn.masked_layers(make(name)[0]).values()}
    leaves = {kind for kind in kinds(MaskedLayer) if kind.__module__.startswith("stochprune.")}
    leaves = {kind for kind in leaves if not kind.__name__.startswith("_") and kind.__name__ not in ABSTRACT}
    assert leaves == present


ABSTRACT = {"MaskedLayer", "RandomLayer"}


def test_no_layer_has_a_forward_of_its_own():
    """The base's forward knows of given weights, of thresholds and of draws; a layer that forgot one was wrong."""
    assert not [kind for kind in kinds(MaskedLayer) if kind.forward is not MaskedLayer.forward]
