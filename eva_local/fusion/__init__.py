"""Votes to one distribution: project, filter, weigh, combine."""
