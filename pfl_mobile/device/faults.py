"""What stands between a device and its aggregator, as errors that say which way out there is.

An answer is judged by ``protocol/answers.py``; here are the words for it. A connection that failed is judged by why:
certificates, TLS and what speaks no HTTP end the try (NotTheAggregatorError), all else may pass (UnreachableError).
"""

from __future__ import annotations

import re
import socket
import ssl
import urllib.parse
from typing import TYPE_CHECKING

from pfl_mobile.device.backoff import retry_after
from pfl_mobile.errors import (
    CertificateError,
    ConfigError,
    DeviceError,
    NotTheAggregatorError,
    OtherProtocolError,
    PflError,
    ProtocolError,
    RedirectedError,
    TlsError,
    TooLargeOnTheWayError,
    UnreachableError,
)
from pfl_mobile.protocol.answers import HEADER
from pfl_mobile.protocol.bodies import PROTOCOL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pfl_mobile.protocol.answers import Verdict

#: No more seconds does an answer that is not the aggregator's make a device wait.
_MOST_TOLD_S = 60.0
#: Seconds that a look at what a port speaks may take, twice.
_PROBE_S = 2.0
#: What OpenSSL says when the other side's first bytes are no TLS.
_NO_TLS = {
    "BAD_RECORD_TYPE",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNEXPECTED_MESSAGE",
    "UNKNOWN_PROTOCOL",
    "WRONG_VERSION_NUMBER",
}
#: What it says when the two sides have no version or cipher in common; alerts of the other side besides.
_NO_AGREEMENT = {
    "NO_CIPHERS_AVAILABLE",
    "NO_PROTOCOLS_AVAILABLE",
    "NO_SHARED_CIPHER",
    "UNSUPPORTED_PROTOCOL",
    "VERSION_TOO_LOW",
    "WRONG_SSL_VERSION",
}
_SIGN_IN = "if this network has a sign-in page, sign in first"


def answer_fault(
    verdict: Verdict, server: str, path: str, status: int, headers: Mapping[str, str], sent: int
) -> DeviceError:
    """The error of an answer that is neither the aggregator's answer nor its problem.

    Args:
        verdict: of ``judge``.
        server: the address that was asked.
        path: that was asked for.
        status: of the answer.
        headers: of the answer, names in any case of letters.
        sent: bytes of the request's body.
    """
    found = {name.lower(): value for name, value in headers.items()}
    what = _described(status, found)
    match verdict.kind:
        case "other-protocol":
            theirs = found[HEADER.lower()].strip()[:20]
            return OtherProtocolError(
                f"{server} speaks version {theirs!a} of the protocol, this device version {PROTOCOL}",
                mend="update pfl-mobile on the device"
                if theirs.isdecimal() and int(theirs) > PROTOCOL
                else "update the aggregator",
            )
        case "changed-on-the-way":
            return ProtocolError(
                f"an answer of {server} was compressed on the way ({found['content-encoding'][:40]!a}), which the "
                "device does not ask for",
                mend="switch compression off for the aggregator in what lies between",
            )
        case "redirect":
            return _redirected(server, path, status, found.get("location", ""))
        case "too-large-on-the-way":
            return TooLargeOnTheWayError(
                f"something between this device and {server} refuses a body of {sent} bytes ({what}); it is not the "
                "aggregator, which would say so itself",
                mend=f"let it pass bodies of {sent} bytes (nginx: client_max_body_size), or take an address without it",
            )
        case "proxy-refuses":
            return _proxy_refuses(server, what)
        case "busy-on-the-way":
            told = retry_after(found.get("retry-after"))
            return UnreachableError(
                f"{server} cannot be reached: something between answers in its place ({what})",
                mend="wait; if it stays so, ask the operator whether the aggregator behind it runs",
                retry_after_s=None if told is None else min(told, _MOST_TOLD_S),
            )
    return NotTheAggregatorError(
        f"what answers at {server} is not an aggregator of pfl-mobile ({what}, without the header {HEADER})",
        mend=f"check the server's address and port; {_SIGN_IN}; an aggregator of an older version must be updated, and "
        "what lies between must pass the header on",
    )


def environment_fault(error: Exception) -> ConfigError:
    """The error of a proxy or of certificates that the environment names; no text of it, which may hold a password."""
    return ConfigError(
        "the environment names a proxy or certificates that cannot be used "
        f"({type(error).__name__}; HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE, SSL_CERT_DIR)",
        mend="correct or remove them; a proxy is given as http://HOST:PORT",
    )


def connection_fault(error: Exception, server: str) -> PflError:
    """The error of a request that got no whole answer.

    Args:
        error: of the HTTP library.
        server: the address that was asked.
    """
    if isinstance(error, UnicodeError):  # a name that cannot be looked up; the server's was looked at before
        return environment_fault(error)
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate(cause, server)
        if isinstance(cause, ssl.SSLError) and (fault := _tls(cause.reason or "", server)):
            return fault
        if isinstance(cause, socket.gaierror):
            return UnreachableError(
                f"{server} cannot be reached: there is no address for its name ({cause.strerror})",
                mend="check the spelling of the address, and the network",
            )
    what = str(error) or type(error).__name__
    if type(error).__name__ == "ProxyError":
        said = re.match(r"\d{3}\b", what)
        if said and not said[0].startswith("5"):
            return _proxy_refuses(server, what[:100])
    if type(error).__name__ == "RemoteProtocolError" and "illegal" in what:
        return _no_http(server)
    return UnreachableError(f"{server} cannot be reached: {what}", mend="check the address and the network")


def plain_fault(server: str) -> NotTheAggregatorError | None:
    """What a port that gave no answer to plain HTTP speaks instead; None where it may be HTTP after all.

    Asks it once more, for nothing, and then for TLS; no certificate is looked at.
    """
    parts = urllib.parse.urlsplit(server)
    where, host = (parts.hostname or "", parts.port or 80), parts.hostname or ""
    try:
        with socket.create_connection(where, _PROBE_S) as plain:
            plain.sendall(f"HEAD / HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n".encode())
            first = plain.recv(5)
    except OSError:
        first = b""
    if first and not first.startswith((b"HTTP/", b"\x15\x03")):
        return _no_http(server)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(where, _PROBE_S) as plain:
            context.wrap_socket(plain, server_hostname=host).close()
    except ssl.SSLError as error:
        if "ALERT" not in (error.reason or ""):  # an alert refuses, but in TLS
            return None
    except OSError:
        return None
    return TlsError(
        f"{server} is plain HTTP, and the port speaks TLS",
        mend=f"give the address with https://: https://{server.removeprefix('http://')}",
    )


def _no_http(server: str) -> NotTheAggregatorError:
    return NotTheAggregatorError(
        f"what answers at {server} speaks no HTTP, so it is not an aggregator",
        mend="check the server's address and port",
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it came from."""
    found: BaseException | None = error
    for _ in range(20):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__


def _described(status: int, headers: Mapping[str, str]) -> str:
    """The answer in a few words, of which strangers choose no more than 40 characters each."""
    said = [f"status {status}"]
    kind = headers.get("content-type", "").partition(";")[0].strip()
    said += [f"{kind[:40]!a}"] if kind else []
    program = headers.get("server", "").strip()
    said += [f"of {program[:40]!a}"] if program else []
    return ", ".join(said)


def _redirected(server: str, path: str, status: int, location: str) -> RedirectedError:
    to = urllib.parse.urljoin(server + path, location.strip())
    shown = f"{to[:200]!a}"
    base = to.removesuffix(path) if to.endswith(path) else None
    if base and base != server:
        mend = f"if you trust it, give that address: --server {base[:200]}"
    else:
        mend = f"check the server's address; {_SIGN_IN}"
    return RedirectedError(
        f"{server} sends its visitors to {shown} (status {status}); the device did not follow, as what it sends is for "
        "the aggregator alone",
        mend=mend,
    )


def _proxy_refuses(server: str, what: str) -> NotTheAggregatorError:
    return NotTheAggregatorError(
        f"the proxy of this network refuses the way to {server} ({what})",
        mend="give its user and password in HTTPS_PROXY, or name the server's host in NO_PROXY",
    )


def _certificate(error: ssl.SSLCertVerificationError, server: str) -> CertificateError:
    why = error.verify_message or str(error)
    match error.verify_code:
        case 9:
            mend = "check this device's clock; else the operator's certificate is not valid yet"
        case 10:
            mend = "the operator must renew it; check this device's clock too"
        case 18 | 19 | 20 | 21:
            mend = (
                "if it is the operator's own, give the certificate of who signed it: --ca FILE; " + _SIGN_IN
            )
        case 62 | 64:
            mend = f"give the address with the name that is in the certificate; {_SIGN_IN}"
        case _:
            mend = f"ask the operator for another certificate; {_SIGN_IN}"
    return CertificateError(f"the certificate of {server} is not accepted: {why}", mend=mend)


def _tls(reason: str, server: str) -> TlsError | None:
    if reason in _NO_TLS:
        return TlsError(
            f"{server} is HTTPS, and what answers there speaks no TLS",
            mend="check the address and port; an aggregator without TLS has an address that begins with http://",
        )
    if reason in _NO_AGREEMENT or "ALERT" in reason:
        return TlsError(
            f"no TLS connection to {server} could be agreed on ({reason.lower().replace('_', ' ')})",
            mend="the server must offer TLS 1.2 or newer under this name, and ask for no certificate of the device",
        )
    return None
