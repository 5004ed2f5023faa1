"""Chaos: a whole realm is killed at every step and at random moments, and must come out whole. `make chaos` runs it."""
