"""Bounds on the robust loss, measured on checkpoints."""
