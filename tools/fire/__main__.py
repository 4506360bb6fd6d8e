"""`python -m tools.fire`."""
