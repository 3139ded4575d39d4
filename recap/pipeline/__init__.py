"""A run: its graph, what is missing before it starts, its stages in order."""
