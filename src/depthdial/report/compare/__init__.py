"""The page of a comparison: answers of some depths side by side."""
