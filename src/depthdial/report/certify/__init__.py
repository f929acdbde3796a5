"""The page of certificates: how much each depth loses, and what is promised."""
