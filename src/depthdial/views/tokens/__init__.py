"""Depth for each token: policies, the cache, the layer and the view that they need, and trained gates."""
