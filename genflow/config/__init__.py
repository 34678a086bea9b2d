"""From a recipe's YAML to a checked graph of components."""
