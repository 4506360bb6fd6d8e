"""Several GGUF models with different vocabularies write one answer together, on your machine."""
