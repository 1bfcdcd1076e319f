"""Accuracy on adversarial and corrupted images."""
