"""Exact multiple-choice knapsacks."""
