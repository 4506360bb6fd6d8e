"""What all pages have in common: the frame, the palette, plots."""
