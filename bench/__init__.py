"""Benchmarks and the GPU check. It is a package, so that no other package called ``bench`` is imported instead."""
