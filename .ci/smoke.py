"""Check that the package lies in a folder, uses a backend, and masks as the contract says: smoke.py FOLDER BACKEND"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys

import torch

import stochprune as sp

folder, expected = sys.argv[1:]
assert sp.__file__.startswith(folder), sp.__file__
x = torch.ones(2, 70)
backend = sp.backends.resolve(x).NAME
assert backend == expected, sp.backends.table()
logits = torch.linspace(-3, 3, 210).view(3, 70)
threshold = sp.rng.threshold_from_logits(logits)
keep = sp.keep_mask(threshold, seed=1, draw=2, stream=3)
assert torch.equal(keep, sp.rng.uniform16(3, 70, seed=1, draw=2, stream=3) & 0x7FFF < threshold.int())
y = sp.functional.masked_linear(x, torch.ones(3, 70), logits, seed=1, draw=2, stream=3)
assert torch.equal(y[0], keep.sum(1).float())
model = sp.convert(torch.nn.Sequential(torch.nn.Linear(70, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)))
model(x).sum().backward()
assert sp.harden(model, 0.5)(x).shape == (2, 2)
needs = [r for r in importlib.metadata.requires("stochprune") or [] if "extra ==" not in r]
assert {re.match(r"\w+", r)[0] for r in needs} == {"torch", "numpy"}, needs
assert importlib.util.find_spec("stochprune.kernels").origin.startswith(folder)
print(f"ok: {backend} from {folder.rsplit('/', 1)[1]}")
