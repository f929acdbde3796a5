"""Small tables to learn from, whose truth is known."""

import numpy as np

GROUPS = [slice(0, 2), slice(2, 42), slice(42, 82)]  # two scalars and two blocks of hidden states


def features_of(n=200, seed=0):
    """(n, 82): scalars, and blocks of low rank with noise, as hidden states are."""
    draw = np.random.default_rng(seed)
    latent = draw.normal(size=(n, 6))
    blocks = [latent @ draw.normal(size=(6, 40)) + 0.1 * draw.normal(size=(n, 40)) for _ in range(2)]
    return np.concatenate([draw.normal(size=(n, 2)), *blocks], axis=1)


def linear(n=200, noise=0.01, seed=0):
    """Features and (n, 3) values: two routes that follow the features, and the full route, which is always right."""
    features = features_of(n, seed)
    draw = np.random.default_rng(seed + 1)
    signal = 0.1 * features[:, :2] + 0.02 * features[:, 2:42] @ np.random.default_rng(7).normal(size=(40, 2)) / 6
    return features, np.column_stack([0.6 + signal + noise * draw.normal(size=(n, 2)), np.ones(n)])


def r2(predicted, values):
    return 1 - ((predicted - values) ** 2).mean(axis=0) / values.var(axis=0)
