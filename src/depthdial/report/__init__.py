"""Rows to figures and pages; never runs a model."""
