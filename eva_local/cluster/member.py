"""A member of an ensemble whose model is open in a process elsewhere."""
