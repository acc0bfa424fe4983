"""The theory made runnable: the linear model under random masks."""
