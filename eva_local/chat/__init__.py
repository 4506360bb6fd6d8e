"""Conversations with an ensemble in a terminal: turns, budget, autosave, commands."""
