"""One member's tokens of one text, kept equal to the shared bytes."""
