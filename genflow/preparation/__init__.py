"""From pictures as people have them to packed data."""
