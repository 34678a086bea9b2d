"""Released weights of the original projects, turned into run folders."""
