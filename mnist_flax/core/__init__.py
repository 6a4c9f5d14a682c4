"""The mathematics: pure functions from arrays and a config to arrays."""
