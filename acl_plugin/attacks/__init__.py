"""Adversaries: threat models, the attacks of torchattacks, and their bridge to contrastive losses."""
