"""Tasks of lm-evaluation-harness at any depth of a model; needs the extra `eval`."""
