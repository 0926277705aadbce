"""What Vestibule means: the domain, the actors and the flows over them; no framework and no driver."""
