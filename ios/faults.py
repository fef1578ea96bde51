"""What a device of Swift says where something else than its aggregator answers, or another process has its folder.

    python ios/faults.py

* certificates that expired, are not valid yet, are of another name or of nobody known, or that the server asks for;
  plain HTTP where TLS is asked for, and the other way round: each ends with the error that Python and Kotlin give;
* a folder that a process of Python has is not opened, and the other way round.

The program ``pfl-swift-device`` must be built, and the bundle: ``make round-of-three`` does both, and runs this.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rounds

sys.path.insert(0, str(rounds.PROJECT))  # strangers and certificates are those of Python's own tests

from pfl_mobile.bundle import Bundle
from pfl_mobile.device.store import DeviceFolder
from pfl_mobile.errors import DeviceFolderError
from pfl_mobile.local.evaluation import model_id
from tests.device.strangers import Certificates, http_bytes, raw

FOLDER = rounds.IOS / ".build" / "faults"
AT_A_TIME = 4
PAGE = http_bytes(200, b"<html>", Content_Type="text/html")
#: How the certificate is made, and a word of the mend.
CERTIFICATES = {
    "signed by itself": ({"own": True}, "trusts who signed it"),
    "expired": ({"days": (-9, -2)}, "renew"),
    "not yet valid": ({"days": (2, 9)}, "clock"),
    "of another name": ({"host": "other.example"}, "name that is in the certificate"),
}


def expect(what: str, server: str, error: str, mend: str, trusts: Path) -> None:
    """A device that asks there, and trusts this authority, ends with this error, without waiting."""
    folder = FOLDER / what.replace(" ", "-")
    told = rounds.Swift(folder, server, patience="0", trusts=trusts).failed()
    rounds.check(told["error"] == error and mend in told["mend"], f"{what}: {told}")


def tls() -> None:
    """Try all that may be wrong with TLS, some at a time, as a device takes longer to start than to fail."""
    made, elsewhere = Certificates(FOLDER), FOLDER / "elsewhere"
    elsewhere.mkdir()
    other = Certificates(elsewhere).ca
    asking = made.context()
    asking.verify_mode = ssl.CERT_REQUIRED
    asking.load_verify_locations(made.ca)

    def refused(what: str, error: str, mend: str, context: ssl.SSLContext, trusts: Path) -> None:
        with raw(PAGE, tls=context) as (host, seen):
            expect(what, f"https://{host}", error, mend, trusts)
            rounds.check(not any(seen), f"{what}: something was asked all the same")

    def trusted(context: ssl.SSLContext) -> None:
        with raw(PAGE, tls=context) as (host, seen):
            # accepted, so that what is asked there is seen to be no aggregator
            expect("trusted", f"https://{host}", "NotTheAggregatorError", "address and port", made.ca)
            rounds.check(any(seen), "nothing was asked over TLS")

    def plain(context: ssl.SSLContext) -> None:
        with raw(PAGE, tls=context) as (host, _):
            expect("plain where TLS speaks", f"http://{host}", "TlsError", f"https://{host}", made.ca)

    def no_tls() -> None:
        with raw(http_bytes(400)) as (host, _):
            expect("TLS where plain speaks", f"https://{host}", "TlsError", "http://", made.ca)

    wrong = "CertificateError"
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        tries = [
            pool.submit(trusted, made.context()),
            pool.submit(plain, made.context()),
            pool.submit(no_tls),
            pool.submit(refused, "unknown authority", wrong, "trusts who signed it", made.context(), other),
            pool.submit(refused, "asking", "TlsError", "certificate of the device", asking, made.ca),
        ]
        for what, (settings, mend) in CERTIFICATES.items():
            tries.append(pool.submit(refused, what, wrong, mend, made.context(**settings), made.ca))
        for one in tries:
            one.result()


def locks() -> None:
    """One process has a folder, whatever its language."""
    folder = FOLDER / "locked"
    with Bundle.open(rounds.BUNDLE) as bundle:
        model = model_id(bundle)
    with DeviceFolder(folder, model):
        told = rounds.Swift(folder, "http://127.0.0.1:9", patience="0").failed()
        taken = told["error"] == "DeviceFolderError" and "in use by another process" in told["message"]
        rounds.check(taken, f"a folder that Python has: {told}")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        device = rounds.Swift(folder, f"http://127.0.0.1:{silent.getsockname()[1]}")
        try:
            silent.settimeout(rounds.WAIT_S)
            silent.accept()[0].close()  # it has the folder, and asks
            try:
                DeviceFolder(folder, model).close()
            except DeviceFolderError as error:
                rounds.check("in use by another process" in str(error), str(error))
            else:
                rounds.check(False, "Python opened a folder that Swift has")
        finally:
            device.kill()
    DeviceFolder(folder, model).close()


def main() -> None:
    """Try everything in a folder that is made anew."""
    rounds.check(rounds.BUNDLE.exists(), f"{rounds.BUNDLE} is missing; mend: python android/desktop.py")
    shutil.rmtree(FOLDER, ignore_errors=True)
    Path(FOLDER).mkdir(parents=True)
    if shutil.which("swift") is not None:
        print(
            "SKIPPED the faults of TLS: with the machine's own Swift nobody can say whom a program trusts",
            flush=True,
        )
    else:
        tls()
        print("TLS: each fault of certificates and of the port is told", flush=True)
    locks()
    print("a folder is of one process, be it of Swift or of Python", flush=True)


if __name__ == "__main__":
    main()
