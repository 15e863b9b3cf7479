"""How fast it is, measured beside other ways: `python -m tests.benchmarks`."""
