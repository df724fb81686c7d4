"""Numbers and pictures about a model."""
