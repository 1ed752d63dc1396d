"""What an inspect pod reports of a checkpoint, small enough for a container's termination message."""

import base64
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from plimsoll.api.cache_loss import measured_caches
from plimsoll.api.config_keys import read_keys
from plimsoll.api.errors import CheckpointError
from plimsoll.api.facts import facts_from_config
from plimsoll.api.layer_tensors import expected_tensors
from plimsoll.api.model import ModelFacts
from plimsoll.api.quantization import essential
from plimsoll.api.tensor_table import collapse, expand

#: Kubernetes keeps this much of a container's last words.
MAX_BYTES = 4096
#: Tells a report from the words of a failure, and one layout of it from the next.
_MARK = b"plimsoll-inspection/1 "
#: Unpacked; a forged report must not unpack to gigabytes, nor take seconds to read.
_MOST_JSON = 1 << 18

#: Of digests and revisions: they stand in conditions, annotations and names of volumes.
_NAME = re.compile(r"[!-~]{0,200}")
_LONGEST_PATH, _MOST_ENDS, _MOST_BYTES = 1 << 12, 1 << 10, 1 << 62

#: The class below has a field that is called like the type.
Packed = bytes


@dataclass(frozen=True)
class Inspection:
    """Facts of one source at one revision, from its configuration and tensor headers alone."""

    digest: str
    """`sha256:…` over names, sizes and headers (oci://: the image's own digest)."""
    revision: str
    """What `source` resolves to for good: a commit on a hub, a hash of S3's tags of the contents, else the digest."""
    bytes: int
    """Of all files that serving needs."""
    path: str
    """Of the checkpoint inside what the source holds: `` for a folder, `model.gguf` for one file of it."""
    facts: ModelFacts
    contents: str = ""
    """Fingerprint of the files where they were read, for sources whose `revision` does not pin them; `` of others."""

    def encode(self) -> Packed:
        """Printable ASCII of at most `MAX_BYTES`. `decode` gives facts that are equal, tensors and all.

        Raises:
            CheckpointError: these facts do not fit, or are none that a configuration could lead to.
        """
        # Nulls too: a key that is absent takes the default of its class, which may be another value.
        config = {key: self.facts.config[key] for key in read_keys() if key in self.facts.config}
        config |= {
            key: essential(config[key])
            for key in ("quantization_config", "compression_config")
            if config.get(key) is not None
        }
        report = {
            "digest": self.digest,
            "revision": self.revision,
            "bytes": self.bytes,
            "path": self.path,
            "config": config,
            "ends": list(self.facts.eos_token_ids),
            "tensors": None if self.facts.tensors is None else collapse(self.facts.tensors),
        }
        if self.facts.measured_caches:
            increases = self.facts.measured_caches.items()
            report["caches"] = [{"precision": name, "increase": increase} for name, increase in increases]
        if self.contents:
            report["contents"] = self.contents
        text = json.dumps(report, separators=(",", ":"), sort_keys=True).encode()
        packed = _MARK + base64.b85encode(zlib.compress(text, 9))
        if len(packed) > MAX_BYTES or len(text) > _MOST_JSON:
            raise CheckpointError(
                f"its facts take {len(packed)} bytes, a container's last words hold {MAX_BYTES}",
                field=self.path or None,
                fix="Its tensors differ from layer to layer more than any known model's; convert it again",
            )
        if Inspection.decode(packed) != self:
            raise CheckpointError("its facts do not follow from its configuration", field=self.path or None)
        return packed

    @staticmethod
    def is_report(message: Packed | str) -> bool:
        """Whether a container's last words are a report, and not the words of a failure."""
        return _ascii(message).startswith(_MARK)

    @staticmethod
    def decode(message: Packed | str) -> "Inspection":
        """What `encode` made.

        Raises:
            CheckpointError: it is something else, or damaged.
        """
        raw = _ascii(message)
        if not raw.startswith(_MARK):
            raise CheckpointError("is not the report of an inspection", value=raw[:120].decode(errors="replace"))
        if len(raw) > MAX_BYTES:
            raise CheckpointError(f"is longer than any report: {len(raw)} bytes, and {MAX_BYTES} are the most")
        try:
            unpacker = zlib.decompressobj()
            text = unpacker.decompress(base64.b85decode(raw[len(_MARK) :].strip()), _MOST_JSON)
            if not unpacker.eof:
                raise ValueError("cut short")
            return _inspection(json.loads(text))
        except CheckpointError:
            raise
        except Exception as error:  # A forged report may be of any shape.
            raise CheckpointError(f"is a damaged report ({type(error).__name__})", fix="Inspect it again") from None


def _ascii(message: bytes | str) -> bytes:
    return (message.encode(errors="replace") if isinstance(message, str) else message).strip()


def _inspection(report: Mapping[str, Any]) -> Inspection:
    # Lone surrogates cannot be written anywhere.
    json.dumps(report, ensure_ascii=False).encode()
    names, contents = [report["digest"], report["revision"]], report.get("contents") or ""
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in (*names, contents)):
        raise ValueError("a digest or revision that no reader makes")
    if not isinstance(report["path"], str) or len(report["path"]) > _LONGEST_PATH or len(report["ends"]) > _MOST_ENDS:
        raise ValueError("a path or a list of tokens that no reader makes")
    if type(report["bytes"]) is not int or not 0 <= report["bytes"] <= _MOST_BYTES:
        raise ValueError("a size that no checkpoint has")
    tensors = None if report["tensors"] is None else expand(report["tensors"])
    facts = facts_from_config(report["config"], tensors)
    # Headers say which modules are whole. Without them expressions of the checkpoint would, and may match for hours.
    if facts.quantization is not None and not expected_tensors(facts).keys() <= (tensors or {}).keys():
        raise ValueError("tensors are missing")
    return Inspection(
        digest=report["digest"],
        revision=report["revision"],
        bytes=report["bytes"],
        path=report["path"],
        facts=replace(
            facts, eos_token_ids=tuple(int(index) for index in report["ends"]), measured_caches=measured_caches(report)
        ),
        contents=contents,
    )
