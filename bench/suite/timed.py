"""The test that pytest-benchmark runs for each case: see :mod:`stochprune.bench.run`, which gives it its arguments.

It imports nothing, because pytest may import it under another name.
"""


def test_case(benchmark, suite, case):
    suite.measure(case, benchmark)
