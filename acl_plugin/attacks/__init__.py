"""Threat models, torchattacks' attacks, and their adaptation to contrastive losses."""
