"""The theory as programs: the linear model under random masks, and bounds on the risk of a network."""
