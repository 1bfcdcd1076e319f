"""Encoders from timm's networks: stems, norm banks, projectors."""
