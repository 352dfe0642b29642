"""The built-in tasks: problems that are made, not read."""
