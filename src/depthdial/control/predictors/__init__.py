"""Predictors of a number for each route, from features."""
