"""Results and models in the format of RobustBench."""
