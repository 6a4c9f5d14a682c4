"""One experiment per question: `python -m experiments.NAME`; see README.md."""
