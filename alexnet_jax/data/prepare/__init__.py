"""The commands that prepare and examine data sets."""
