"""Adapters that make a model stand routes: specialists and elastic ones."""
