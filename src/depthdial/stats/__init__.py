"""Intervals, bootstrap, tests of equivalence, and numbers as JSON holds them; numpy and scipy alone."""
