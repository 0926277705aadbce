"""The service over HTTP: requests in, flows asked, answers and problems out."""
