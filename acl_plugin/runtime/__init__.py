"""Devices, distributed training, random numbers, files, progress and signals."""
