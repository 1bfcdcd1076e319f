"""Contrastive losses, divergences and sharpness as pure functions of tensors."""
