"""Tests of the package's `run`."""
