"""Benchmarks and the check of a GPU; a package, so that no other one called ``bench`` can hide it."""
