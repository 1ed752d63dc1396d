"""Addresses of checkpoints, and hosts that no checkpoint comes from."""

import pytest

from plimsoll.api.errors import SpecError
from plimsoll.api.source import Source, endpoint_host, forbidden_host, parse_source

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
    ],
)  # fmt: skip
def test_hosts_of_this_machine_the_cluster_and_the_cloud_are_forbidden_in_any_spelling(host: str) -> None:
    assert forbidden_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "huggingface.co", "s3.amazonaws.com", "minio.storage.svc", "minio.storage.svc.cluster.local", "10.96.0.7",
        "192.168.1.1", "128.0.0.1", "8.8.8.8", "2606:4700::1", "localhost.example.org", "my-kubernetes.example",
        "kubernetes.example.org", "169.254.example", "1.2.3.4.5", "999.1.1.1", "",
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
