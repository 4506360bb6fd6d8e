"""Mappings between vocabularies: what they are and the methods that learn them."""
