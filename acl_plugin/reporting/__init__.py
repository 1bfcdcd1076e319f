"""Create reports, tables and figures of runs."""
