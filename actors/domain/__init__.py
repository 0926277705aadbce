"""The rules of signing up, in the standard library alone: time and randomness are arguments."""
