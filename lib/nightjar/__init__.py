"""Nightjar: recommendations for every user of a large catalogue, precomputed every night."""

__version__ = "0.1.0"
