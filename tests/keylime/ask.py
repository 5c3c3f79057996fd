"""Asks a Keylime verifier on this machine, and prints what it answers.

Arguments: port; folder with the verifier's own certificates; path; file with the body of a POST, or nothing for a GET.
"""

import sys

import requests

port, folder, path, *body = sys.argv[1:]
options = {
    "verify": f"{folder}/cacert.crt",
    "cert": (f"{folder}/client-cert.crt", f"{folder}/client-private.pem"),
    "timeout": 120,
}
address = f"https://127.0.0.1:{port}{path}"
if body:
    with open(body[0], "rb") as file:
        answer = requests.post(address, data=file.read(), headers={"Content-Type": "application/json"}, **options)
else:
    answer = requests.get(address, **options)
print(answer.text)
