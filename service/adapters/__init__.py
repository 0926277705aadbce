"""One file for each port of the actors."""
