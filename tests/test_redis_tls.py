"""A RedisStore over TLS with a user's password, all of it in the URL; Debian's server has TLS, the wheel's has not."""

import datetime as dt
import ipaddress
from contextlib import closing

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis import Redis
from servers import valkey
from servers.process import free_port, private_folder, unavailable

from sessiontree import StoreUnavailable
from sessiontree.records import Changes
from sessiontree.stores import open_store
from sessiontree.stores.conformance.tools import PROOF, handles_of, js, new
from sessiontree.stores.conformance.watching import Heard


def certificate(folder):
    """Write a key and a certificate for this machine, which vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, *plain))


@pytest.fixture(scope="module")
def server():
    """A server with a TLS port, and the folder of its certificate."""
    folder, port = private_folder("sessiontree-tls"), free_port()
    certificate(folder)
    made = valkey.Valkey(
        "redis", "--tls-port", str(port), "--tls-cert-file", str(folder / "cert.pem"), "--tls-key-file",
        str(folder / "key.pem"), "--tls-ca-cert-file", str(folder / "cert.pem"), "--tls-auth-clients", "no",
    )  # fmt: skip
    try:
        made.start()
    except RuntimeError as error:
        made.remove()
        unavailable(f"This Redis has no TLS: {error}")
    with Redis(unix_socket_path=str(made.path)) as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">s3cret/?", "~*", "&*", "+@all")
    made.tls = f"localhost:{port}", folder / "cert.pem"
    yield made
    made.remove()
    for name in ("cert.pem", "key.pem"):
        (folder / name).unlink()
    folder.rmdir()


def test_tls_and_a_users_password_come_from_the_url(server):
    address, ca = server.tls
    url = f"rediss://app:s3cret%2F%3F@{address}/0?ssl_ca_certs={ca}"
    heard = Heard()
    with closing(open_store(url, prefix="tls", timeout=5)) as store, closing(open_store(url, prefix="tls")) as other:
        stop = store.watch(heard.on_change)
        record = new(other, labels={"subject": "bob"})
        assert heard.has(record.handle)
        for _ in range(100):
            store.apply(record.handle, PROOF, Changes(sets={"a": (js("x" * 20_000), 0)}))
            assert handles_of(store.find("subject", "bob")) == [record.handle]
        assert store._pool._idle[-1].driver._sock.gettimeout() == 5, "Here the system cannot keep the time."
        with Redis(unix_socket_path=str(server.path)) as client:
            assert len([each for each in client.client_list() if each["user"] == "app"]) == 3, "None was made anew."
        assert store.revoke(record.handle)
        stop()


@pytest.mark.parametrize(
    "wrong", ["rediss://app:s3cret%2F%3F@{address}", "rediss://app:wrong@{address}?ssl_ca_certs={ca}"]
)
def test_a_certificate_that_nobody_vouches_for_and_a_wrong_password_are_refused(server, wrong):
    address, ca = server.tls
    with closing(open_store(wrong.format(address=address, ca=ca), timeout=5)) as store:
        with pytest.raises(StoreUnavailable) as caught:
            store.load("a")
        assert "s3cret" not in str(caught.value)
