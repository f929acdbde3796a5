"""Measurements of a model: sweeps, scores, similarity, costs and features."""
