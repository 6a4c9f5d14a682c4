"""Tests of the package's `data`."""
