"""One file per paper; importing this package registers them."""

from acl_plugin.recipes import acl, gsa_rsl, simclr

__all__ = ["acl", "gsa_rsl", "simclr"]
