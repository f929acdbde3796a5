"""Predictors of quality: from the features of a sequence to the expected quality of every route. See `fitting`.

Importing this loads numpy alone, and so does predicting; torch and LightGBM are loaded by the fits that need them.
"""
