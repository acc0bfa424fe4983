"""Smaller models with the same outputs: the removal of units, channels, heads and branches that are exactly zero.

The work is done in five steps. ``recorder`` runs the model on the example inputs and lists the torch functions that it
calls. ``flow`` and the rules of ``trace`` find which elements of all tensors belong to which unit, and which are
constant or unneeded. ``plan`` decides which units go. ``edit`` cuts a copy of the model. ``shrink`` runs the
copy, compares the shape of every tensor with the plan, and at the end the outputs with those of the model. Nothing is
assumed about the model's Python code: where the copy does not run as planned, the units involved stay.

Why not a library: torch-pruning 1.6 knows dimensions of layers but no values. It does not see that a unit is zero or
constant, folds nothing into biases, does not find layers whose parameters are frozen, and cuts through a reshape of
fixed size, after which the model fails.
"""

from stochprune.shrinking.attention import Attention
from stochprune.shrinking.report import Kept, ShrinkReport
from stochprune.shrinking.shrink import shrink

__all__ = ["Attention", "Kept", "ShrinkReport", "shrink"]
