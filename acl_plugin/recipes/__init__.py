"""One file per paper; importing this package registers them."""

from acl_plugin.recipes import a_infonce, acl, advcl, air, deacl, dynacl, gsa_rsl, profeat, rocl, simclr

__all__ = ["a_infonce", "acl", "advcl", "air", "deacl", "dynacl", "gsa_rsl", "profeat", "rocl", "simclr"]
