"""The default servers for one machine: PostgreSQL, Valkey and a mail catcher, as child processes under DATA_DIR."""
