"""Honest cost numbers for sequence models: measured, counted or absent."""

__version__ = "0.1.0"
