"""Generate RESULTS.md: a module for each question, over one for cells."""
