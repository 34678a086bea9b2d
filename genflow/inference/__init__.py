"""What people do with a generator: many samples, edits, pictures in and out."""
