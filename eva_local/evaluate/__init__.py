"""Measure an ensemble against its members."""
