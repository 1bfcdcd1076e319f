"""Repairs of other packages, which go when those are mended."""
