"""What happens to runs in practice, tried many times: `python -m experiments.faults`."""
