"""Export results and models in the format of RobustBench."""
