"""Benchmark of the gradient estimators: their bias, variance and time, and the certificates learnt with two of them."""
