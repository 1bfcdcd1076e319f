"""Device, random numbers, files, progress and signals of a process."""
