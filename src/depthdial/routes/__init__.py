"""Routes, their grammar, and families of them."""
