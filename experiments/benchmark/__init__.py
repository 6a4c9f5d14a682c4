"""The benchmark against other frameworks: `python -m experiments.benchmark`."""
