"""Result rows on disk: their schema, and a store of finished units."""
