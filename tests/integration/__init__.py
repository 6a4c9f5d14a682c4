"""Tests that start processes, or check the package as a whole."""
