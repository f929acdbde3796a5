"""The page of a gates study."""
