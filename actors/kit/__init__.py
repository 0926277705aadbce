"""Mailboxes, actors and their supervisor, on AnyIO alone."""
