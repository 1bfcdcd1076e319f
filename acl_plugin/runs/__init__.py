"""Run folders: their files, and functions to write and read them."""
