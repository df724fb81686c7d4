"""Trained weights from other frameworks, and to them."""
