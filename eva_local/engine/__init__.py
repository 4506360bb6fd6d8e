"""Texts in progress: the step, the scheduler, sampling, grammars, scoring."""
