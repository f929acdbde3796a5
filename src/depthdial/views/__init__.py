"""A model cut to a route without a copy of any weight."""
