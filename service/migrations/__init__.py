"""The schema's history: numbered SQL files, forward only."""
