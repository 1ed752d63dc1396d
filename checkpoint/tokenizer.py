"""Text to token ids and back, and chat messages to a prompt, as the checkpoint's own tokenizer does it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plimsoll.api.errors import CheckpointError, PlimsollError
from plimsoll.checkpoint.checkpoint import Checkpoint, token_ids

MAX_TEMPLATE_BYTES = 4 * 1024 * 1024


class ChatTemplateError(PlimsollError):
    """The messages do not go through the model's chat template, or there is none."""


class Tokenizer:
    """The checkpoint's tokenizer. Safe to use from several threads at once.

    Attributes:
        vocab_size: entries, added tokens included; the model's logits may have more columns.
        eos_token_ids: every id that ends an answer: the tokenizer's, the configuration's and the generation
            configuration's.
        special_ids: ids that `skip_special_tokens` hides.
    """

    def __init__(self, fast: Any, eos_token_ids: Sequence[int]) -> None:
        """Args: fast: a transformers fast tokenizer."""
        self._fast = fast
        self._backend = fast.backend_tokenizer
        # Threads share the backend: it must never be set to pad or cut for one caller and not the next.
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        self.eos_token_ids: tuple[int, ...] = tuple(sorted(eos_token_ids))
        self.bos_token_id: int | None = fast.bos_token_id
        self.pad_token_id: int | None = fast.pad_token_id
        added = self._backend.get_added_tokens_decoder()
        self.special_ids = frozenset(index for index, token in added.items() if token.special)
        self._added: dict[int, str] = {index: token.content for index, token in added.items()}
        self._byte_level = "ByteLevel" in _kinds(self._backend.decoder)
        self._bytes_of = {spelled: byte for byte, spelled in _byte_alphabet().items()}

    @property
    def chat_template(self) -> str | None:
        template = self._fast.chat_template
        # Some models have several by name; `default` is the one for plain conversation.
        return template.get("default") if isinstance(template, dict) else template

    @property
    def has_chat_template(self) -> bool:
        return self.chat_template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Special tokens written in it become their ids.

        Args:
            add_special_tokens: add BOS and the like where the model was trained with them.
        """
        # Half of a surrogate pair has no UTF-8; the tokenizer would refuse the whole text.
        clean = text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text
        ids: list[int] = self._backend.encode(clean, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`. Bytes that make no character become U+FFFD; ids outside the vocabulary become nothing."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Each id as the vocabulary spells it (`Ġthe`); empty for ids outside it."""
        return [self._backend.id_to_token(index) or "" for index in ids]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes this token stands for; concatenated over an answer they are its exact UTF-8."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token: str | None = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._byte_level:
            spelled = [self._bytes_of.get(character) for character in token]
            return bytes(byte for byte in spelled if byte is not None) if None not in spelled else token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace("▁", " ").encode()

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Token ids of a conversation as the model expects it, ready to be continued.

        Args:
            messages: each with `role` and `content`, oldest first.
            variables: more for the template, such as `tools` or `enable_thinking`.

        Raises:
            ChatTemplateError: there is no template, or it refuses these messages.
        """
        return self.encode(
            self.render_chat_template(messages, add_generation_prompt=add_generation_prompt, **variables),
            add_special_tokens=False,
        )

    def render_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The same as text. Raises ChatTemplateError."""
        if not self.has_chat_template:
            raise ChatTemplateError(
                "this model has no chat template", field="messages", fix="Use /v1/completions, or give a template file"
            )
        try:
            rendered = self._fast.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
        except Exception as error:  # A template is a program of the checkpoint's author: anything may come out of it.
            reason = str(error).strip().splitlines()
            raise ChatTemplateError(
                f"the model's chat template refuses these messages: {(reason or [type(error).__name__])[0][:300]}",
                field="messages",
            ) from error
        return str(rendered)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template, as transformers reads them."""
        self._fast.save_pretrained(folder)


def load_tokenizer(checkpoint: Checkpoint, chat_template_path: Path | str | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint of either format. Offline, and no code of the checkpoint is run.

    Args:
        chat_template_path: a Jinja file to use in place of the checkpoint's template.

    Raises:
        CheckpointError: the tokenizer is missing, damaged, or needs code from the checkpoint.
    """
    try:
        fast = _from_gguf(checkpoint) if checkpoint.format == "gguf" else _from_folder(checkpoint.path)
    except CheckpointError:
        raise
    except Exception as error:  # The Rust tokenizers raise bare Exception.
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"the tokenizer cannot be read: {(reason or [type(error).__name__])[0][:300]}",
            field=str(checkpoint.path),
            fix="Download tokenizer.json and tokenizer_config.json again",
        ) from error
    if chat_template_path is not None:
        fast.chat_template = _read_template(Path(chat_template_path))
    ends: set[int] = set()
    for value in (
        fast.eos_token_id,
        checkpoint.config.get("eos_token_id"),
        checkpoint.generation_config.get("eos_token_id"),
    ):
        ends |= set(token_ids(value))
    return Tokenizer(fast, sorted(ends))


def _from_gguf(checkpoint: Checkpoint) -> Any:
    from plimsoll.checkpoint.gguf_checkpoint import GgufCheckpoint
    from plimsoll.checkpoint.gguf_tokenizer import build_tokenizer

    assert isinstance(checkpoint, GgufCheckpoint)
    return build_tokenizer(checkpoint.file)


def _from_folder(folder: Path) -> Any:
    # tokenizer.json is the whole pipeline as it was trained; classes chosen by name may rebuild it differently.
    if (folder / "tokenizer.json").is_file():
        from transformers import PreTrainedTokenizerFast

        fast: Any = PreTrainedTokenizerFast
        return fast.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if (folder / "tokenizer.model").is_file():
        from plimsoll.checkpoint.sentencepiece_model import build_tokenizer

        return build_tokenizer(folder)
    raise CheckpointError(
        "holds neither tokenizer.json nor tokenizer.model", field=str(folder), fix="Complete the download"
    )


def _read_template(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise CheckpointError(f"is larger than {MAX_TEMPLATE_BYTES} bytes", field=str(path))
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the chat template cannot be read: {error}", field=str(path)) from None


def _kinds(decoder: Any) -> set[str]:
    """Type names of a `tokenizers` decoder and, for a sequence, of its parts."""
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {part["type"] for part in [state, *state.get("decoders", [])]}


def _byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where it shows, else the next from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + index) for index, byte in enumerate(hidden)}
