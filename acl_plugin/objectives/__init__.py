"""Objectives, one module per method. Importing this package registers all of them."""

from acl_plugin.objectives import a_infonce, acl, advcl, air, clae, deacl, dynacl, gsa_rsl, profeat, rocl, simclr

__all__ = ["a_infonce", "acl", "advcl", "air", "clae", "deacl", "dynacl", "gsa_rsl", "profeat", "rocl", "simclr"]
