"""Objectives: one file for each method, which registers itself when this package is imported."""

from acl_plugin.objectives import a_infonce, acl, advcl, air, deacl, dynacl, gsa_rsl, profeat, rocl, simclr

__all__ = ["a_infonce", "acl", "advcl", "air", "deacl", "dynacl", "gsa_rsl", "profeat", "rocl", "simclr"]
