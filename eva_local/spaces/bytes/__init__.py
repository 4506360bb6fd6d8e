"""The bytes as the shared space."""
