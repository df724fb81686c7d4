"""Examines data sets: prepare check."""
