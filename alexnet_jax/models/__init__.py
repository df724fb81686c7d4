"""Flax modules; they know nothing of data or training."""
