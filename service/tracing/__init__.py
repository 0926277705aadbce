"""Traces of OpenTelemetry, from the request to the mail server's answer; nothing of it is imported unless asked for."""
