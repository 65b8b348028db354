"""The papers' layers, one file each; import them from ``unrolling``."""
