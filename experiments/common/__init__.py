"""What the experiments share: provenance of results, and runs of the main command."""
