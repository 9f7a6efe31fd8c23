"""Micro-benchmarks: what each step of a job's path costs alone, per item.

    pytest bench/micro                                all, some two minutes, and a table
    pytest bench/micro --quick                        the smaller half, under half a minute
    pytest bench/micro --benchmark-save=baseline      and keep it, in bench/results/micro
    python -m tickwheel.bench.micro.compare [BEFORE.json [AFTER.json]]      kept ones alone

The table sets this run against the newest kept one of the same kind of machine and Python. Every
figure is the median of the rounds, divided by the items that a round handles. A kept run is small:
what pytest-benchmark made of the rounds, without the rounds.

Nothing here is a test of the time taken: a benchmark fails only if what it measures goes wrong.
The garbage collector is off while the clock runs, which favours whatever makes more objects.
"""
