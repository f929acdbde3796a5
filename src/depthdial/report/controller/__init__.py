"""The page of a controller."""
