"""Encoders from timm models or any module: stems, norm banks and projectors."""
