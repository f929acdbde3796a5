"""Intervals, tests of equivalence and plain numbers of them; numpy alone."""
