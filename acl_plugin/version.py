"""The version, where the build reads it without importing torch."""

VERSION = "0.2.0"
