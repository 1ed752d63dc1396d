"""Certificate authorities that a cluster trusts beside the usual ones: of its own hub, or of a proxy that looks inside.

Libraries take one bundle in place of theirs, so the usual authorities and the extra ones are written into one file.
"""

import os
import ssl
import tempfile
from pathlib import Path

from plimsoll.api.errors import SpecError

#: A file of certificates in PEM; the operator sets it for `pod.caBundle`.
EXTRA = "PLIMSOLL_CA_BUNDLE"
#: What httpx and the standard library, requests, and boto read.
_READ_BY = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")


def install() -> None:
    """From now on, for this process and its children, if `PLIMSOLL_CA_BUNDLE` is set. A second call changes nothing.

    Raises:
        SpecError: that file cannot be read, or holds no certificate.
    """
    extra = os.environ.pop(EXTRA, None)
    if extra is None:
        return
    try:
        certificates = Path(extra).read_text(encoding="ascii", errors="replace")
        ssl.create_default_context().load_verify_locations(cadata=certificates)
    except (OSError, ValueError) as error:
        # ssl.SSLError is an OSError: what it says names neither file nor field.
        raise SpecError(
            "is no file of certificates in PEM", field=EXTRA, value=extra,
            fix="Check the ConfigMap and key of spec.pod.caBundle",
        ) from error  # fmt: skip
    with tempfile.NamedTemporaryFile("w", prefix="plimsoll-ca-", suffix=".pem", delete=False) as together:
        together.write(f"{_usual()}\n{certificates}\n")
    os.environ.update(dict.fromkeys(_READ_BY, together.name))


def _usual() -> str:
    import certifi

    return Path(certifi.where()).read_text(encoding="ascii", errors="replace")
