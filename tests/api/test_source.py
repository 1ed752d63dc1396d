"""Addresses of checkpoints, and hosts that no checkpoint comes from."""

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.api.forbidden import forbidden_host
from plimsoll.api.source import Source, endpoint_host, parse_source

SHA = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://org/name", Source("hf", "org/name", "", "main")),
        ("hf://org/name@refs%2Fpr%2F1/q/x.gguf", Source("hf", "org/name", "q/x.gguf", "refs/pr/1")),
        ("s3://bucket", Source("s3", "bucket")),
        ("s3://my.bucket-1/a/b/", Source("s3", "my.bucket-1", "a/b")),
        ("s3://bucket/a/x.gguf", Source("s3", "bucket", "a/x.gguf")),
        ("pvc://claim", Source("pvc", "claim")),
        ("pvc://claim/models/llama", Source("pvc", "claim", "models/llama")),
        (f"oci://registry.example:443/org/image@{SHA}", Source("oci", "registry.example:443/org/image", "", SHA)),
        (f"oci://image@{SHA}/models/a", Source("oci", "image", "models/a", SHA)),
        ("file:///models/a b", Source("file", "", "/models/a b")),
    ],
)
def test_addresses_are_taken_apart_and_put_together(text: str, source: Source) -> None:
    assert parse_source(text) == source
    assert parse_source(str(source)) == source


@pytest.mark.parametrize(
    "text",
    [
        "", "org/name", "http://host/x", "gs://bucket/x", "hf://", "hf://name", "hf://a/b@c@d", "hf://a/b/x.bin",
        "hf://a/../b@c", "s3://", "s3:///x", "s3://b/../x", "s3://bucket/a//b", "s3://bucket/./a", "s3://bucket/a\nb",
        "pvc://Claim/x", "pvc://claim/../../etc", "pvc://-x", "pvc://claim/a\0b", "oci://image", "oci://image:tag",
        f"oci://image@{SHA[:-1]}", f"oci://image@{SHA}/../x", "oci://image@md5:0", "file://", "file:// ", "file://a\0b",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_its_field(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_source(text)
    assert caught.value.field == "spec.model.source"
    assert caught.value.fix


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254", "169.254.170.2", "127.0.0.1", "127.9.9.9", "127.1", "2130706433", "0x7f000001", "0x7f.1",
        "0177.0.0.1", "0", "0.0.0.0", "::1", "[::1]", "::", "::ffff:127.0.0.1", "[::ffff:a9fe:a9fe]", "fe80::1",
        "[fe80::1%eth0]", "fd00:ec2::254", "64:ff9b::169.254.169.254", "2002:7f00:1::", "100.100.100.200",
        "168.63.129.16", "localhost", "LOCALHOST", "localhost.", "a.localhost", "metadata.google.internal",
        "metadata.google.internal.", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local", "Kubernetes.Default.Svc.example.org",
        # Metadata by IPv6: AWS, Google, Oracle, Scaleway.
        "fd00:ec2::23", "fd20:ce::254", "[FD20:00CE::0254]", "fd00:c1::a9fe:a9fe", "fd00:42::42",
        # IPv4 inside IPv6: mapped, compatible, translated, NAT64 well known, of a network's own and of any prefix,
        # 6to4, Teredo (of the client, then of the server), ISATAP.
        "::ffff:169.254.169.254", "::169.254.169.254", "::ffff:0:169.254.169.254", "::127.0.0.1", "64:ff9b::a9fe:a9fe",
        "64:ff9b::7f00:1", "64:ff9b:1::169.254.169.254", "64:ff9b:1:a9fe:a9:fe00::", "64:ff9b:1:7f:0:1::",
        "64:ff9b:1:0:7f:0:100:0", "2001:db8:64::169.254.169.254", "2001:db8::100.100.100.200", "2002:a9fe:a9fe::1",
        "2001:0:808:808::5601:5601", "2001:0:a9fe:a9fe::f7f7:f7f7", "2001:db8::5efe:169.254.169.254",
        "fe80::5efe:7f00:1",
        # IPv4 as resolvers also read it.
        "169.254.43518", "0xa9fea9fe", "0251.0376.0251.0376", "2852039166", "0xA9.254.0251.254", "0000177.1",
        "\uff11\uff12\uff17.0.0.1", "169\u3002254\uff0e169\uff61254", "9" * 5000, "1." * 400, "x" * 5000,
        "instance-data.ec2.internal", "ip6-localhost", "localhost.localdomain", "metadata.azure.internal",
    ],
)  # fmt: skip
def test_hosts_of_this_machine_the_cluster_and_the_cloud_are_forbidden_in_any_spelling(host: str) -> None:
    assert forbidden_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "huggingface.co", "s3.amazonaws.com", "minio.storage.svc", "minio.storage.svc.cluster.local", "10.96.0.7",
        "192.168.1.1", "128.0.0.1", "8.8.8.8", "2606:4700::1", "localhost.example.org", "my-kubernetes.example",
        "kubernetes.example.org", "169.254.example", "1.2.3.4.5", "999.1.1.1", "", "64:ff9b::808:808",
        "::ffff:10.0.0.1", "2002:808:808::1", "64:ff9b:1::8.8.8.8", "2001:db8::5efe:8.8.8.8", "fd12:3456::1",
        "4294967296",
    ],
)  # fmt: skip
def test_hosts_that_keep_checkpoints_are_not(host: str) -> None:
    assert forbidden_host(host) is None


def test_endpoints_are_services_without_names_and_passwords() -> None:
    assert endpoint_host("https://hub.example:8443/mirror") == "hub.example"
    assert endpoint_host("http://[::1]:9000") == "[::1]"
    for wrong in ("ftp://x", "https://", "https://user:secret@host", "https://host?a=b", "host:9000", "https://a b"):
        with pytest.raises(SpecError) as caught:
            endpoint_host(wrong)
        assert "secret" not in str(caught.value)
