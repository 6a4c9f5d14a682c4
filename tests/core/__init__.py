"""Tests of the package's `core`."""
