"""Another user of a cluster, who is at work while workers start, and prints what came of it.

``python -m tests.cluster.stranger store ADDRESS PORT FILE``, on a node of its own, tries to read the file of
a start, to read, overwrite and join at the store as rank 1, and floods it until its standard input ends.
``python -m tests.cluster.stranger proxies``, on the node of a worker, writes to whatever listens on that
node's loopback device, until its standard input ends.
"""

import json
import os
import select
import socket
import sys
from pathlib import Path

from hpcdat.distributed.authentication import HELLO, MAGIC, FrameWriter, encode
from hpcdat.distributed.store_client import StoreClient

NOBODY = 65534
CONNECTIONS = 1000


def become_nobody():
    # Nobody may not read Python's own modules here; this one is loaded with the first connection.
    socket.getaddrinfo("127.0.0.1", 1)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def attempt(act):
    """What it brought, as text."""
    try:
        return repr(act())
    except OSError as error:
        return type(error).__name__


def say(address, port, *parts):
    """Everything that is answered; a part is sent after the answer to the one before."""
    answers = b""
    with socket.create_connection((address, port), timeout=5) as connection:
        for part in parts:
            connection.sendall(part)
            answers += connection.recv(1000)
    return answers


def attack_store(address, port, file):
    written = encode({"id": 0, "operation": "set", "keys": ["hpcdat/main/of [0, 1, 2]/gloo/0/1"]}, [b"mine"])
    hello = HELLO.pack(MAGIC, 1, bytes(32))
    print(
        json.dumps(
            {
                "file": attempt(lambda: Path(file).read_bytes()),
                "read": attempt(lambda: say(address, port, b"GET /global/0 HTTP/1.1\r\n\r\n" + bytes(100))),
                "overwrite": attempt(
                    lambda: say(address, port, hello, bytes(32) + FrameWriter(bytes(32)).frame(written))[64:]
                ),
                "join": attempt(lambda: StoreClient(address, port, b"a guess", 1)),
            }
        ),
        flush=True,
    )
    flood = []
    while len(flood) < CONNECTIONS:
        flood.append(socket.create_connection((address, port), timeout=5))
    print(json.dumps({"flood": len(flood)}), flush=True)
    sys.stdin.read()


def listening_on_loopback():
    """Ports of this node, as any user can read them."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_ = line.split()
        address, port = local.split(":")
        if state == "0A" and address == "0100007F":
            yield int(port, 16)


def attack_proxies():
    tried, answers = set(), []
    request = b"PUT /%s/1 HTTP/1.0\r\nContent-Length: 4\r\n\r\nmine"
    while not select.select([sys.stdin], [], [], 0.01)[0]:
        for port in listening_on_loopback():
            tried.add(port)
            for scope in (b"global", b"global_process_set_hash_0"):
                answer = attempt(lambda port=port, scope=scope: say("127.0.0.1", port, request % scope))
                if answer not in ("b''", "ConnectionResetError", "ConnectionRefusedError", "BrokenPipeError"):
                    answers.append(answer)
    print(json.dumps({"tried": len(tried), "answers": answers}), flush=True)


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    become_nobody()
    if what == "store":
        attack_store(arguments[0], int(arguments[1]), arguments[2])
    else:
        attack_proxies(*arguments)
