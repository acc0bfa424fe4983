"""The benchmark suite, installed as ``stochprune.bench``: ``stochprune bench run``.

A case is one op at one shape. Its contenders take turns in one process, and each is checked before it is timed:

==================  ==================================================================================
``case``            a case, and what a contender is
``cases``           the tables of cases, by group
``ops/``            each op: its contenders, what is right, and the least work that any way has to do
``scaling``         cases over three decades, and slopes
``outside``         contenders of a user, beside those of an op
``laws``            what a stochastic layer must compute, checked from outside
``turns, roof``     times in turns; the bandwidth and the rate of products of this run
``measure``         one case: check, time, memory
``row, run``        all cases through pytest-benchmark, the file of results, continuing after a kill
``compare``         two files of results
==================  ==================================================================================

The modules import each other relatively, because a clone without an installation imports them as ``bench.suite``.
"""

KIND = "benchmark suite"
"""The ``kind`` of a file of results, by which a report knows it. It stands here because this file imports nothing."""
