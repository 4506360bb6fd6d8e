"""Processes of eva-local on other machines, through Ray; and members of an ensemble there."""
