"""Redis: the client, the wake-ups, the rate limits and the metrics of live workers."""
