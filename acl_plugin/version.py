"""The version, in a module that the build can read without importing torch."""

VERSION = "0.2.0"
