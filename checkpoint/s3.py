"""A folder or GGUF file in an S3 bucket, or in a service that speaks S3, read in ranges."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

from plimsoll.api.errors import CheckpointError
from plimsoll.api.source import Source
from plimsoll.checkpoint import guard
from plimsoll.checkpoint.answers import limited
from plimsoll.checkpoint.gguf_split import part_names
from plimsoll.checkpoint.remote import (
    MOST_FILES,
    PIECE,
    Remote,
    RemoteFile,
    TransferError,
    checked,
    choose,
    too_many,
)

#: Pages of one listing, which hold a thousand names each.
MOST_PAGES = 1000
#: Of an answer that is read whole: a listing's page of a thousand long names, or an error.
MOST_BYTES = 16 << 20
#: For such an answer, in seconds.
LONGEST = 60.0
#: Of one request, by botocore itself.
ATTEMPTS = 3
_BUSY = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeTooSkewed", "Throttling"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "403", "Forbidden"}
_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AuthFailure"}


class S3Remote(Remote):
    """See `Remote`. Keys and the service's address come from the environment alone; no metadata service is asked.

    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN (without them requests are anonymous),
    AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3), AWS_REGION (or AWS_DEFAULT_REGION), AWS_CA_BUNDLE.
    """

    def __init__(self, source: Source) -> None:
        """List what serving needs.

        Raises:
            CheckpointError: no such bucket or prefix, no access, no connection, no weights.
        """
        self.bucket = source.name
        self.label = str(source)
        self.endpoint = _environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
        if self.endpoint:
            guard.check_url(self.endpoint)
        self._client = _client(self.endpoint)
        self._enciphered: set[str] = set()
        self.files: Sequence[RemoteFile]
        self.path = ""
        folder, slash, name = source.path.rpartition("/")
        if name.endswith(".gguf"):
            self._prefix = folder + slash
            self.path = name
            self.files = checked([self._head(part) for part in part_names(name)], self.label)
        else:
            self._prefix = f"{source.path}/" if source.path else ""
            self.files, self.path = choose(self._list(), self.label)
        # What the service says of each content: two fine-tunes of one shape differ in it, as they do not in headers.
        said = json.dumps(sorted((file.name, file.size, file.tag) for file in self.files))
        self.revision = "sha256:" + hashlib.sha256(said.encode()).hexdigest()

    def _head(self, name: str) -> RemoteFile:
        try:
            found = self._client.head_object(Bucket=self.bucket, Key=self._prefix + name)
        except Exception as error:
            raise self._explained(error) from None
        return self._described(name, found.get("ContentLength"), found.get("ETag"))

    def _list(self) -> list[RemoteFile]:
        found: list[RemoteFile] = []
        below: list[RemoteFile] = []
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._prefix, Delimiter="/"
            )
            for number, page in enumerate(pages):
                for entry in page.get("Contents", ()):
                    name = entry.get("Key", "").removeprefix(self._prefix)
                    # An object called `prefix/` is how some tools draw a folder.
                    if name and not name.startswith(".") and "\\" not in name:
                        found.append(self._described(name, entry.get("Size"), entry.get("ETag")))
                for entry in page.get("CommonPrefixes", ()):
                    below.append(RemoteFile(entry.get("Prefix", "").removeprefix(self._prefix), 0, ""))
                if len(found) + len(below) > MOST_FILES or number >= MOST_PAGES:
                    raise too_many(self.label)
        except CheckpointError:
            raise
        except Exception as error:
            raise self._explained(error) from None
        return found + below

    def _described(self, name: str, size: Any, etag: Any) -> RemoteFile:
        if not isinstance(size, int) or not isinstance(etag, str):
            raise CheckpointError(
                f"the service says no size or no ETag of {name[:200]}", field=self.label,
                fix="Check spec.model.endpoint (AWS_ENDPOINT_URL): it does not answer like S3",
            )  # fmt: skip
        tag = etag.strip('"')
        # Of an upload in parts the tag has a dash and is no checksum. Some services make up 32 digits all the same.
        checksum = f"md5?:{tag}" if re.fullmatch(r"[0-9a-f]{32}", tag) else None
        return RemoteFile(name, size, tag, checksum)

    def _pieces(self, file: RemoteFile, start: int, stop: int) -> Iterator[bytes]:
        try:
            # Of the very content that was listed: one that was replaced since is an error and never a mixture.
            answer = self._client.get_object(
                Bucket=self.bucket, Key=self._prefix + file.name, Range=f"bytes={start}-{stop - 1}",
                IfMatch=f'"{file.tag}"',
            )  # fmt: skip
            sent = str(answer.get("ContentRange", ""))
            if (sent and not sent.startswith(f"bytes {start}-")) or (start and not sent):
                raise CheckpointError(
                    f"the answer for {file.name} is another part of the file than was asked for", field=self.label,
                    value=sent[:80], fix="The source, or something on the way, is broken",
                )  # fmt: skip
            if "kms" in answer.get("ServerSideEncryption", "") or answer.get("SSECustomerAlgorithm"):
                self._enciphered.add(file.name)
            with closing(answer["Body"]) as content:
                yield from content.iter_chunks(PIECE)
        except Exception as error:
            raise self._explained(error) from None

    def trusts(self, file: RemoteFile) -> bool:
        # The tag of a content that is stored enciphered is not of what arrives.
        return file.checksum is not None and file.name not in self._enciphered

    def _explained(self, error: Exception) -> Exception:
        """What went wrong, in words for the user. Neither keys nor signatures reach the message."""
        from botocore import exceptions

        if refused := guard.refusal(self.label):
            return refused
        if isinstance(error, CheckpointError):
            return error
        if isinstance(error, exceptions.ClientError):
            return self._answered(error)
        where = self.endpoint or "AWS"
        if isinstance(error, exceptions.ParamValidationError | exceptions.InvalidRegionError):
            return CheckpointError("is not a bucket's name", field=self.label, value=self.bucket)
        if isinstance(error, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError | exceptions.SSLError):
            return TransferError(
                f"{where} cannot be reached ({type(error).__name__})", field=self.label,
                fix="Check spec.model.endpoint (AWS_ENDPOINT_URL), the network and its policies",
            )  # fmt: skip
        if isinstance(error, exceptions.BotoCoreError | OSError) or type(error).__module__.startswith("urllib3"):
            return TransferError(f"the connection to {where} broke ({type(error).__name__})", field=self.label)
        # What a service that is none makes the library stumble over: sizes that are no numbers, dates of no year.
        return CheckpointError(
            f"{where} does not answer like S3 ({type(error).__name__})", field=self.label,
            fix="Check spec.model.endpoint (AWS_ENDPOINT_URL)",
        )  # fmt: skip

    def _answered(self, error: Any) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0)
        anonymous = not os.environ.get("AWS_ACCESS_KEY_ID")
        if code in _BUSY or status in (408, 429) or status >= 500:
            return TransferError(f"{self.endpoint or 'AWS'} is busy ({code or status})", field=self.label)
        if code == "NoSuchBucket":
            return CheckpointError("there is no such bucket", field=self.label, value=self.bucket)
        if code in _KEYS:
            return CheckpointError(
                f"the service does not accept these credentials ({code})", field=self.label,
                fix="Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in credentialsSecret",
            )  # fmt: skip
        if code in _DENIED or status in (401, 403):
            message = "needs credentials, and none are given" if anonymous else "these credentials may not read it"
            fix = (
                "Name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in credentialsSecret"
                if anonymous
                else "Allow s3:ListBucket on the bucket and s3:GetObject on the prefix"
            )
            return CheckpointError(message, field=self.label, fix=fix)
        if status == 412 or code == "PreconditionFailed":
            return CheckpointError(
                "has changed while it was read", field=self.label, fix="Try again once it is uploaded whole"
            )
        if status == 404:
            return CheckpointError("there is no such file", field=self.label, fix="Check bucket and prefix")
        return CheckpointError(f"the service answered {code or status}", field=self.label)


def _environment(*names: str) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)


def _client(endpoint: str | None) -> Any:
    import boto3.session
    import botocore.session
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.credentials import CredentialResolver

    session = botocore.session.Session()
    # Neither files of this machine nor a cloud's metadata service have a say in whose rights are used.
    session.set_config_variable("config_file", os.devnull)
    session.set_config_variable("credentials_file", os.devnull)
    session.register_component("credential_provider", CredentialResolver(providers=[]))
    key, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    signed = bool(key and secret)
    client = boto3.session.Session(botocore_session=session).client(
        "s3",
        endpoint_url=endpoint,
        region_name=_environment("AWS_REGION", "AWS_DEFAULT_REGION") or "us-east-1",
        aws_access_key_id=key if signed else None,
        aws_secret_access_key=secret if signed else None,
        aws_session_token=os.environ.get("AWS_SESSION_TOKEN") or None if signed else None,
        config=Config(
            signature_version="s3v4" if signed else UNSIGNED,
            s3={"addressing_style": "path"} if endpoint else {},
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            connect_timeout=10,
            read_timeout=30,
            max_pool_connections=16,
        ),
    )
    client.meta.events.register("before-send.s3", _Bounded(client._endpoint.http_session.send))
    return client


class _Bounded:
    """Sends requests for botocore, which reads every answer but a file's to its end, however long that is."""

    def __init__(self, send: Callable[[Any], Any]) -> None:
        self._send = send

    def __call__(self, request: Any, event_name: str = "", **_: Any) -> Any:
        # Else the body is read before anything can count it.
        request.stream_output = True
        answer = self._send(request)
        if not (event_name.endswith(".GetObject") and answer.status_code in (200, 206)):
            answer.raw = _BoundedBody(answer.raw, urlsplit(request.url).netloc)
        return answer


class _BoundedBody:
    def __init__(self, raw: Any, where: str) -> None:
        self._raw, self._where = raw, where

    def __getattr__(self, name: str) -> Any:
        # A copy of this object asks before it has any attribute.
        if name == "_raw":
            raise AttributeError(name)
        return getattr(self._raw, name)

    def stream(self) -> Iterator[bytes]:
        try:
            yield from limited(self._raw.stream(), MOST_BYTES, LONGEST, self._where)
        except CheckpointError:
            self._raw.close()
            raise
