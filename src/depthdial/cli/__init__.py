"""The command line: verbs only, one file for each group."""
