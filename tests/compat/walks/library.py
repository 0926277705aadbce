"""Sign up with an HTTP library: library.py httpx|requests URL EMAIL PASSWORD, the code on a line of standard input."""

from __future__ import annotations

import importlib
import sys

name, url, email, password = sys.argv[1:]
library = importlib.import_module(name)
users = f"{url}/api/v1/users"
owner = (email, password) if name == "httpx" else (email.encode(), password.encode())  # requests sends str as Latin-1

print(
    library.post(f"{users}/register", json={"email": email, "password": password}, timeout=30).status_code, flush=True
)
code = sys.stdin.readline().strip()
print(library.post(f"{users}/activate", json={"code": code}, auth=owner, timeout=30).status_code, flush=True)
print(library.get(f"{users}/me", auth=owner, timeout=30).status_code, flush=True)
