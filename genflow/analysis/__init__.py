"""What a recipe builds and what it costs; nothing here runs a network on data."""
