"""Tasks: where rows come from, their fields, templates, and what keeps them apart."""
