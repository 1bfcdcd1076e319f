"""Work around defects of other packages, until these are fixed."""
