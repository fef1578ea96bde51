"""A proxy that breaks TCP connections after a random number of bytes, in either direction."""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import threading
from contextlib import contextmanager


@contextmanager
def breaking(address: str, seed: int, *, share: float = 0.7, most: int = 3000):
    """A proxy in front of ``http://host:port``; gives its address.

    Args:
        address: of the server.
        seed: of what breaks where.
        share: of the connections that break.
        most: bytes after which they do, at most.
    """
    host, _, port = address.removeprefix("http://").partition(":")
    draw, stop = random.Random(seed), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)

    def serve():
        while not stop.is_set():
            with contextlib.suppress(OSError):
                client, _ = listener.accept()
                budget = draw.randint(0, most) if draw.random() < share else None
                target = (host, int(port))
                threading.Thread(target=carry, args=(client, target, budget, stop), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        thread.join()
        listener.close()


def carry(client, target, budget, stop):
    """Copy bytes both ways until one side closes or the budget is spent, which resets both connections."""
    with client, contextlib.suppress(OSError), socket.create_connection(target) as server:
        other = {client: server, server: client}
        with selectors.DefaultSelector() as both:
            for side in other:
                both.register(side, selectors.EVENT_READ)
            while not stop.is_set():
                for key, _ in both.select(0.05):
                    piece = key.fileobj.recv(4096)
                    if not piece:
                        return
                    if budget is not None:
                        piece, budget = piece[:budget], budget - len(piece)
                    other[key.fileobj].sendall(piece)
                    if budget is not None and budget <= 0:
                        for side in other:  # no goodbye: what is under way is lost
                            side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                        return
