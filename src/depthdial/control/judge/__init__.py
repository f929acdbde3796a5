"""How good a controller is, at equal cost."""
