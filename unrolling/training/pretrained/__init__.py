"""Weights that ship inside of packages: a vision transformer and a text encoder, and their features kept on the disk."""
