"""The command that prepares data sets."""
