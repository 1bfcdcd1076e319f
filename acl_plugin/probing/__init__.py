"""Probing protocols, which train a classifier on an encoder."""
