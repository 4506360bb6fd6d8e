"""What builds and checks a checkout of eva-local; no part of the package."""
