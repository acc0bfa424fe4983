"""Benchmarks and the GPU check. This is a package, so that no other package called ``bench`` can hide it."""
