"""The page of a check: what ships beside the full model."""
