"""Sends one request to a Keylime verifier on this machine, and prints what it answers.

Arguments: port, file with the request's body. The verifier makes its own certificate when it starts, so it is not checked.
"""

import sys
import warnings

import requests

port, body = sys.argv[1:]
warnings.simplefilter("ignore")
with open(body, "rb") as file:
    answer = requests.post(
        f"https://127.0.0.1:{port}/v2.5/verify/evidence",
        data=file.read(),
        headers={"Content-Type": "application/json"},
        verify=False,
        timeout=120,
    )
print(answer.text)
