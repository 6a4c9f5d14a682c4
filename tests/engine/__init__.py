"""Tests of the package's `engine`."""
