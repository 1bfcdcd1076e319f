"""Protocols that make a classifier of an encoder."""
