"""PostgreSQL: the connections, the statements and the schema."""
