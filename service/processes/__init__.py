"""The processes of one machine: a supervisor, generations of API workers, and Hypercorn inside each worker."""
