"""Sign up with a generated client package: generated.py URL EMAIL PASSWORD, the code on standard input."""

from __future__ import annotations

import base64
import sys

from generated_client import AuthenticatedClient, Client  # type: ignore[import-not-found]  # made by the test
from generated_client.api.default import activate, me, register  # type: ignore[import-not-found]  # as above
from generated_client.models import ActivateRequestType1, RegisterRequest  # type: ignore[import-not-found]  # as above

url, email, password = sys.argv[1:]
token = base64.b64encode(f"{email}:{password}".encode()).decode()
client = Client(base_url=url)
owner = AuthenticatedClient(base_url=url, token=token, prefix="Basic")

answer = register.sync_detailed(client=client, body=RegisterRequest(email=email, password=password))
print(answer.status_code.value, flush=True)
code = sys.stdin.readline().strip()
print(activate.sync_detailed(client=owner, body=ActivateRequestType1(code=code)).status_code.value, flush=True)
print(me.sync_detailed(client=owner).status_code.value, flush=True)
