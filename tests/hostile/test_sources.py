"""Hubs and stores that lie: endless answers, wrong lengths, names that lead out, redirects that would take a token."""

import functools
import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from plimsoll.api.errors import CheckpointError, PlimsollError
from plimsoll.api.source import parse_source
from plimsoll.checkpoint import hub_session, s3
from plimsoll.checkpoint.hub import HubRemote
from plimsoll.checkpoint.remote import Remote, RemoteFile, TransferError, checked
from plimsoll.checkpoint.s3 import S3Remote
from plimsoll.checkpoint.sources import HubSource
from tests.support.hostile_server import Answer, Hostile, endless, hostile_server

COMMIT = "c" * 40
#: More than an answer may take here, and less than any harm.
FEW, MANY = 1 << 20, 16 << 20
BOMB = gzip.compress(b" " * (4 << 20), 1)
TOKEN = "hf_not_for_others"
DIGITS = "9" * 5001


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_session, "MOST_BYTES", FEW)
    monkeypatch.setattr(hub_session, "MOST_PAGES", 5)
    monkeypatch.setattr(s3, "MOST_BYTES", FEW)
    monkeypatch.setattr(s3, "MOST_PAGES", 5)
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    # A client costs more than all that it is asked here.
    monkeypatch.setattr(s3, "_client", functools.cache(s3._client))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hostile], HubRemote]:
    def asked(server: Hostile) -> HubRemote:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        return HubRemote(HubSource("org/name", "main", None))

    return asked


def entry(path: Any = "model.safetensors", size: Any = 100, oid: Any = "a" * 40, **more: Any) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": size, "oid": oid, **more}


def listing(*entries: Any, **more: Any) -> Answer:
    return Answer(json.dumps(list(entries)).encode(), **more)


def hub(
    tree: Answer | None = None, commit: Answer | None = None, file: Answer | None = None
) -> Callable[[str], Answer]:
    """A hub that is right but for what is given."""

    def answer(path: str) -> Answer:
        if "/revision/" in path:
            return commit or Answer(json.dumps({"sha": COMMIT}).encode())
        if "/tree/" in path:
            return tree or listing(entry())
        return file or Answer(b"x" * 100)

    return answer


WRONG_COMMITS = [
    Answer(b"<html>"), Answer(b"[]"), Answer(b"{}"), Answer(b'{"sha": null}'), Answer(b'{"sha": 5}'), Answer(b"null"),
    Answer(b'{"sha": "../../x"}'), Answer(json.dumps({"sha": "c" * 5000}).encode()), Answer(b'{"sha": ""}'),
    Answer(b"[" * 200_000), Answer(b'{"sha": ' + DIGITS.encode() + b"}"), Answer(b"\xff\xfe{}"), Answer(endless),
    Answer(BOMB, headers=(("Content-Encoding", "gzip"),)), Answer(b"x", headers=(("Content-Encoding", "br"),)),
    Answer(endless, 404), Answer(BOMB, 403, (("Content-Encoding", "gzip"),)), Answer(b"", 204), Answer(b"", 302),
    Answer(endless, 302, (("Location", "/api/models/org/name/revision/main"),)),
    Answer(b"", 307, (("Location", "http://["),)), Answer(b"", 301, (("Location", "file:///etc/passwd"),)),
    Answer(b"", 301, (("Location", "http://127.0.0.1:0/"),)), Answer(b"x", headers=(("Content-Length", DIGITS),)),
    Answer(b"{}", headers=(("Content-Length", "50"),)),
]  # fmt: skip
WRONG_FILES: list[Any] = [
    entry("../model.safetensors"), entry("..safetensors/../model.safetensors"), entry("a\n.safetensors"),
    entry("a\0.safetensors"), entry("\u202emodel.safetensors"), entry("m" * 300 + ".safetensors"),
    entry("\ud800.safetensors"),
    entry(None), entry(5), entry(["a.safetensors"]), entry(""), entry("/etc/x.safetensors"), entry(".safetensors/"),
    entry(size=-1), entry(size=1 << 63), entry(size=10**400), entry(size="5"), entry(size=None), entry(size=True),
    entry(size=1.5), entry(size=1e300), entry(oid=None), entry(oid=5), entry(oid="../x"), entry(oid="a" * 5000),
    entry(lfs="x"), entry(lfs={}), entry(lfs={"oid": 5}), entry(lfs={"oid": "../../x", "size": -5}),
]  # fmt: skip
WRONG_LISTS = [
    *(listing(one) for one in WRONG_FILES),
    listing(), listing(None, 5, "x", []), listing(entry(), entry()), Answer(b"{}"), Answer(b"<html>"), Answer(endless),
    listing(*(entry(f"{n}.safetensors") for n in range(12000))), Answer(BOMB, headers=(("Content-Encoding", "gzip"),)),
    listing(entry(), headers=(("Link", '<http://127.0.0.2:1/api/models/x>; rel="next"'),)),
    listing(entry(), headers=(("Link", '<https://127.0.0.1/>; rel="next"'),)),
    listing(entry(), headers=(("Link", '<file:///etc/passwd>; rel="next"'),)),
    listing(entry(), headers=(("Link", '<?cursor=again>; rel="next"'),)),
]  # fmt: skip


def fresh(answer: Answer) -> Answer:
    return Answer(endless(), answer.status, answer.headers) if answer.body is endless else answer


@pytest.mark.parametrize("part", ["commit", "tree"])
def test_what_a_hub_says_of_a_repository_is_refused_in_words_when_it_is_wrong(
    ask: Callable[[Hostile], HubRemote], part: str
) -> None:
    current: list[Answer] = []
    with hostile_server(lambda path: hub(**{part: fresh(current[-1])})(path)) as server:
        for wrong in WRONG_COMMITS if part == "commit" else WRONG_LISTS:
            current.append(wrong)
            server.sent = 0
            with pytest.raises(CheckpointError) as caught:
                ask(server)
            said = str(caught.value)
            assert "hf://org/name" in said or "spec.model.endpoint" in said, (wrong, said)
            assert TOKEN not in said
            assert len(said) < 1000
            assert server.sent < MANY, wrong
            assert wrong.body is not BOMB or "compressed" in said, said


def test_a_hub_that_takes_too_long_to_answer_is_given_up(
    ask: Callable[[Hostile], HubRemote], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_session, "LONGEST", -1.0)
    with hostile_server(hub()) as server, pytest.raises(CheckpointError, match="sends for more than"):
        ask(server)


WRONG_BODIES = [
    Answer(b"x" * 99), Answer(b"", 204), Answer(b"x" * 100, 206),
    Answer(b"x" * 50, headers=(("Content-Length", "100"),)),
    *(
        Answer(b"x" * 100, 206, (("Content-Range", value),))
        for value in (
            "bytes 5-104/100", "bytes 0-99/99", f"bytes 0-99/{DIGITS}", "bytes 0-99/\u00b2", "bytes */100", "x", "",
            f"bytes {DIGITS}-{DIGITS}/100", "bytes -1-99/100",
        )
    ),
    Answer(b"x", 302), Answer(endless, 404), Answer(endless, 302, (("Location", "/again"),)),
]  # fmt: skip


def test_another_part_or_length_of_a_file_is_refused_in_words(ask: Callable[[Hostile], HubRemote]) -> None:
    current = [Answer(b"x" * 100)]
    with hostile_server(lambda path: hub(file=fresh(current[-1]))(path)) as server:
        remote = ask(server)
        for wrong in WRONG_BODIES:
            headers = tuple((name, value.encode().decode("latin-1")) for name, value in wrong.headers)
            current.append(Answer(wrong.body, wrong.status, headers))
            server.sent = 0
            with pytest.raises(CheckpointError) as caught:
                remote.read(remote.files[0], 0, 100)
            assert "hf://org/name" in str(caught.value) or "spec.model.endpoint" in str(caught.value), wrong
            assert server.sent < MANY


def test_no_more_of_a_file_is_taken_than_was_asked_for(ask: Callable[[Hostile], HubRemote]) -> None:
    with hostile_server(lambda path: hub(file=Answer(endless(b"x" * 65536)))(path)) as server:
        remote = ask(server)
        assert remote.read(remote.files[0], 10, 60) == b"x" * 50
        assert b"".join(remote.stream(remote.files[0])) == b"x" * 100
        assert server.sent < MANY
    # Packed answers are refused, so none is asked for.
    assert {headers["accept-encoding"] for _, headers in server.seen} == {"identity"}


def test_a_token_travels_to_no_other_host(ask: Callable[[Hostile], HubRemote]) -> None:
    with hostile_server(hub()) as other:
        elsewhere = (("Location", f"{other.url}/api/models/org/name/tree/{COMMIT}"),)
        for given in (
            hub(tree=Answer(b"", 302, elsewhere)), hub(file=Answer(b"", 302, elsewhere)),
            hub(commit=Answer(b"", 307, (("Location", f"{other.url}/api/models/org/name/revision/main"),))),
            hub(tree=listing(entry(), headers=(("Link", f'<{other.url}/tree/next>; rel="next"'),))),
            hub(tree=listing(entry(), headers=(("Link", f'<{other.url.replace("http:", "")}/tree/x>; rel="next"'),))),
        ):  # fmt: skip
            with hostile_server(given) as server:
                try:
                    remote = ask(server)
                    remote.read(remote.files[0], 0, 100)
                except PlimsollError:
                    pass
                assert any(headers.get("authorization") == f"Bearer {TOKEN}" for _, headers in server.seen)
    assert other.seen
    assert not [headers for _, headers in other.seen if "authorization" in headers]


def bucket(*objects: str, more: str = "") -> Answer:
    listed = "".join(f"<Contents>{one}</Contents>" for one in objects)
    return Answer(
        f'<?xml version="1.0"?><ListBucketResult><Name>b</Name>{listed}{more}</ListBucketResult>'.encode(),
        headers=(("Content-Type", "application/xml"),),
    )


def thing(key: str = "p/model.safetensors", size: str = "100", etag: str = '"e"') -> str:
    return f"<Key>{key}</Key><Size>{size}</Size><ETag>{etag}</ETag>"


WRONG_BUCKETS = [
    Answer(b"<html>"), Answer(b""), Answer(b"x" * 100), Answer(endless), Answer(endless, 403), Answer(b"", 302),
    Answer(BOMB, headers=(("Content-Encoding", "gzip"),)), Answer(b"\x00" * 50),
    Answer(b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "' + b"c" * 9999 + b'">]><a>' + b"&b;" * 9999 + b"</a>"),
    bucket(), bucket(""), bucket("<Key>p/model.safetensors</Key>"), bucket(thing(size="")), bucket(thing(size="x")),
    bucket(thing(size="-1")), bucket(thing(size=DIGITS)), bucket(thing(size=str(1 << 63))), bucket(thing(size="1e5")),
    bucket(thing("p/../model.safetensors")), bucket(thing("p/" + "m" * 900 + ".safetensors")), bucket(thing(), thing()),
    bucket(thing("p/a&#10;.safetensors")), bucket("<Size>5</Size>"), bucket(more="<CommonPrefixes></CommonPrefixes>"),
    bucket(*(thing(f"p/{n}.safetensors") for n in range(14000)), more="<IsTruncated>true</IsTruncated>"),
]  # fmt: skip


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Callable[[Hostile, str], S3Remote]:
    def asked(server: Hostile, source: str = "s3://bucket/p") -> S3Remote:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
        return S3Remote(parse_source(source))

    return asked


def test_what_a_store_says_of_a_bucket_is_refused_in_words_when_it_is_wrong(
    store: Callable[[Hostile], S3Remote],
) -> None:
    current: list[Answer] = []
    with hostile_server(lambda _: fresh(current[-1])) as server:
        for wrong in WRONG_BUCKETS:
            current.append(wrong)
            server.sent = 0
            with pytest.raises(CheckpointError) as caught:
                store(server)
            said = str(caught.value)
            assert "s3://bucket/p" in said or "spec.model.endpoint" in said, (wrong, said)
            assert "hidden-secret" not in said
            assert server.sent < MANY, wrong


def test_a_list_without_an_end_is_given_up(store: Callable[[Hostile], S3Remote]) -> None:
    count = itertools.count()

    def page(_: str) -> Answer:
        token = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{next(count)}</NextContinuationToken>"
        return bucket(more=token)

    with hostile_server(page) as server, pytest.raises(CheckpointError, match="holds more than"):
        store(server)
    assert next(count) < 10


def test_a_store_that_takes_too_long_to_answer_is_given_up(
    store: Callable[[Hostile], S3Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "LONGEST", -1.0)
    with (
        hostile_server(lambda _: bucket(thing())) as server,
        pytest.raises(CheckpointError, match="sends for more than"),
    ):
        store(server)


def test_keys_travel_to_no_other_host(store: Callable[..., S3Remote]) -> None:
    with hostile_server(lambda _: bucket(thing())) as other:
        status = [301]
        with hostile_server(
            lambda _: Answer(b"", status[0], (("Location", f"{other.url}/bucket"), ("x-amz-bucket-region", "evil")))
        ) as server:
            for status[0] in (301, 302, 307, 308):
                for source in ("s3://bucket/p", "s3://bucket/p/model.gguf"):
                    with pytest.raises(CheckpointError):
                        store(server, source)
    assert other.seen == []


def test_a_files_head_or_content_that_is_wrong_is_refused_in_words(store: Callable[..., S3Remote]) -> None:
    current: list[Answer] = []
    with hostile_server(lambda path: bucket(thing()) if "list-type" in path else current[-1]) as server:
        for headers in ((), (("ETag", '"e"'),), (("Content-Length", "x"),), (("Content-Length", "-5"), ("ETag", "e"))):
            current.append(Answer(iter(()), 200, headers))
            with pytest.raises(CheckpointError) as caught:
                store(server, "s3://bucket/p/model.gguf")
            assert "s3://bucket/p" in str(caught.value), headers
        remote = store(server)
        for body in (
            Answer(b"x" * 100, 206, (("Content-Range", "bytes 7-106/100"),)), Answer(b"x" * 20, 200),
            Answer(b"x" * 3, 206), Answer(b"", 204), Answer(b"x" * 100, 206, (("Content-Range", DIGITS),)),
        ):  # fmt: skip
            current.append(body)
            with pytest.raises(CheckpointError) as caught:
                remote.read(remote.files[0], 10, 100)
            assert "s3://bucket/p" in str(caught.value), body


class Dripping(Remote):
    """A source that gives a byte whenever it is asked, each after `seconds` of a clock that only it moves."""

    label, revision, path = "held://", None, ""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.seconds, self.now, self.given = seconds, 0.0, 0
        self.files = [RemoteFile("model.safetensors", 1 << 40, "")]
        monkeypatch.setattr("plimsoll.checkpoint.remote.time.monotonic", lambda: self.now)

    def _pieces(self, file: RemoteFile, start: int, stop: int) -> Iterator[bytes]:
        while self.given < 1000:
            self.now += self.seconds
            self.given += 1
            yield b"x"


def test_a_source_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Dripping(monkeypatch, 10.0)
    with pytest.raises(TransferError, match="too slowly"):
        list(remote.stream(remote.files[0]))
    assert remote.given < 10
    with pytest.raises(TransferError, match="too slowly"):
        remote.read(remote.files[0], 0, 100)


def test_names_and_sizes_that_no_file_can_have_are_refused() -> None:
    names = [
        "",
        ".",
        "..",
        "a/..",
        "../a",
        "a//b",
        "/a",
        "a/",
        "a\n",
        "a\x1b[2J",
        "a\0b",
        "\u2028",
        "m" * 256,
        "\u00e9" * 200,
    ]
    for name in names:
        with pytest.raises(CheckpointError, match="name"):
            checked([RemoteFile(name, 5, "t")], "label")
    for size in (-1, (1 << 50) + 1, 10**400):
        with pytest.raises(CheckpointError, match="size"):
            checked([RemoteFile("a", size, "t")], "label")
    with pytest.raises(CheckpointError, match="twice"):
        checked([RemoteFile("a", 5, "t"), RemoteFile("a", 6, "u")], "label")
    assert checked([RemoteFile("a b/\u6a21\u578b-1.gguf", 0, "t")], "label")
