"""How Vestibule is delivered: HTTP, adapters, mail, embedded servers, processes."""
