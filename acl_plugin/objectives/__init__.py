"""Objectives, one module per method."""
