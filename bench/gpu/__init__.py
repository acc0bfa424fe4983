"""The parts of ``python -m bench.gpu_check``; docs/gpu.md describes its steps.

The ``driver`` starts a ``worker`` for each step and never imports torch; both append to the ``journal``. The modules
that ``steps`` names do the measurements. ``summary`` makes a row of the ledger from the journal alone.
"""
