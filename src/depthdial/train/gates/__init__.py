"""Gates that decide for each token."""
