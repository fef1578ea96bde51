"""What may stand in an aggregator's place: servers that answer anything, certificates of all kinds, a proxy."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import http.server
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@contextmanager
def raw(*answers: bytes, tls: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """A port that answers with these bytes, each GET with the next, the last for ever, and closes the connection.

    Yields:
        Its address, ``host:port``, and what was sent to it by connection.
    """
    seen: list[bytes] = []
    listener, stop = socket.create_server(("127.0.0.1", 0)), threading.Event()
    listener.settimeout(0.05)

    def serve() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                plain, _ = listener.accept()
                plain.settimeout(2.0)
                with tls.wrap_socket(plain, server_side=True) if tls else plain as connection:
                    sent = connection.recv(65536)
                    seen.append(sent)
                    turn = sum(one.startswith(b"GET /") for one in seen)
                    connection.sendall(answers[min(max(turn, 1), len(answers)) - 1])
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(65536):
                            pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        stop.set()
        thread.join()
        listener.close()


def http_bytes(status: int, body: bytes = b"", version: str = "1.1", **headers: str) -> bytes:
    """An answer as it goes over the wire; ``_`` in a header's name is a hyphen."""
    lines = [f"HTTP/{version} {status} X"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if "Content_Length" not in headers and status not in (204, 304):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


Strange = Callable[[str, str, dict[str, str], int], "tuple[int, dict[str, str], bytes] | None"]


@contextmanager
def proxy(address: str, strange: Strange) -> Iterator[str]:
    """A reverse proxy in front of ``http://host:port``.

    Args:
        address: of the server.
        strange: gets method, path, headers and length of the body; gives an answer of the proxy's own, or None.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def anything(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            own = strange(self.command, self.path, dict(self.headers), length)
            if own is None:
                there = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
                there.request(
                    self.command, self.path, body, {k: v for k, v in self.headers.items() if k != "Host"}
                )
                answer = there.getresponse()
                own = answer.status, dict(answer.getheaders()), answer.read()
                there.close()
            status, headers, content = own
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            if self.command == "HEAD" or status == 204:
                content = b""
            if status != 204:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = anything

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Certificates:
    """An authority, and certificates for 127.0.0.1; all files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test authority")])
        self.ca = folder / "ca.pem"
        made = self._built(self.name, self.key.public_key(), self.name, authority=True).sign(
            self.key, hashes.SHA256()
        )
        self.ca.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def context(
        self, *, host: str = "127.0.0.1", days: tuple[int, int] = (-1, 1), own: bool = False
    ) -> ssl.SSLContext:
        """For a server.

        Args:
            host: name or address in the certificate.
            days: from when to when it is valid, from today on.
            own: signed by itself in place of the authority.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        try:
            names: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            names = x509.DNSName(host)
        issuer, signer = (name, key) if own else (self.name, self.key)
        built = self._built(name, key.public_key(), issuer, days=days)
        made = built.add_extension(x509.SubjectAlternativeName([names]), critical=False).sign(
            signer, hashes.SHA256()
        )
        file = self.folder / "server.pem"
        file.write_bytes(
            made.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _built(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePublicKey,
        issuer: x509.Name,
        *,
        authority: bool = False,
        days: tuple[int, int] = (-1, 1),
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days[0]))
            .not_valid_after(now + datetime.timedelta(days[1]))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
