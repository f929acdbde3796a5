"""Certificates: plans, p-values, risk control; numpy alone."""
