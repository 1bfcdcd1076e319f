"""Evaluate accuracy on adversarial and corrupted images."""
