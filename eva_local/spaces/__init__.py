"""The shared space: symbols, and how each member votes in it."""
