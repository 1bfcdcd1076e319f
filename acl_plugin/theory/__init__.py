"""Measure bounds on the robust loss of checkpoints."""
