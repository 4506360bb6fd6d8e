"""GGUF files: find, pull, verify, read headers. The only network."""
