"""The peers, a file for each kind."""
