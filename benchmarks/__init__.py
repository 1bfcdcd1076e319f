"""Collect results of real runs, and generate tables from them."""
