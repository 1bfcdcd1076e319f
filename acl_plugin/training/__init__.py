"""Pretraining with Lightning."""
