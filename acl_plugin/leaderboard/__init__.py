"""Export results and models in the formats of RobustBench and RobustSSL."""
