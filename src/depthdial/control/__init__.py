"""Sequence controllers: predict quality and cost of each route, and choose."""
