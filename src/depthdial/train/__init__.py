"""Training: what depth training and gate training share."""
