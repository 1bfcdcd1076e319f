"""Results of real runs, and the tables made from them."""
