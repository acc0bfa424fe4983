"""The parts of ``python -m bench.gpu_check``; docs/gpu.md tells what each step does.

``driver`` starts a ``worker`` for each step and never imports torch itself; both append to the ``journal``. The modules
named in ``steps`` say what a step measures; ``summary`` makes a row of the ledger from the journal alone.
"""
