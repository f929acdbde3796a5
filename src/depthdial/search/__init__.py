"""Route search, a file for each method."""
