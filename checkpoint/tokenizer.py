"""Text to token ids and back, and chat messages to a prompt, as the checkpoint's own tokenizer does it."""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.chat_template import (
    ChatTemplateError,
    ContentForms,
    chosen_name,
    default_name,
    named_templates,
)
from plimsoll.checkpoint.checkpoint import Checkpoint
from plimsoll.checkpoint.end_tokens import end_token_ids
from plimsoll.checkpoint.json_file import write_object
from plimsoll.checkpoint.tokenizer_limits import check_files, check_processor, failures_named
from plimsoll.checkpoint.tokenizer_parts import check_parts
from plimsoll.checkpoint.turns import SystemTurns, merged

MAX_TEMPLATE_BYTES = 4 * 1024 * 1024

log = logging.getLogger(__name__)


class Tokenizer:
    """The checkpoint's tokenizer. Safe to use from several threads at once.

    Attributes:
        vocab_size: entries, added tokens included; the model's logits may have more columns.
        eos_token_ids: every id that ends an answer (`end_token_ids`), in ascending order.
        special_ids: ids that `skip_special_tokens` hides.
        special_tokens: these tokens' texts, by id.
        added_tokens: texts of all tokens that stand beside the vocabulary.
        chat_templates: Jinja sources by name; `default` for a single template without a name.
    """

    def __init__(self, fast: Any, eos_token_ids: Sequence[int], template: str | None = None) -> None:
        """Args: fast: a transformers fast tokenizer. template: the chat template to use, by name; None chooses one.

        Raises ChatTemplateError for a name that no template has.
        """
        self._fast = fast
        self.chat_templates = named_templates(fast.chat_template)
        self._default = default_name(self.chat_templates)
        if template is not None:
            self._default = chosen_name(self.chat_templates, "", template, with_tools=False)
        self._forms = {name: ContentForms() for name in self.chat_templates}
        self._turns = {name: SystemTurns() for name in self.chat_templates}
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
        self.special_tokens = {index: self._added[index] for index in self.special_ids}
        self.added_tokens = frozenset(self._added.values())
        self._byte_level = "ByteLevel" in _kinds(self._backend.decoder)
        self._bytes_of = {spelled: byte for byte, spelled in _byte_alphabet().items()}

    @property
    def chat_template(self) -> str | None:
        """The template of a conversation that chooses none."""
        return None if self._default is None else self.chat_templates[self._default]

    def template_source(self, name: str | None = None, with_tools: bool = False) -> str | None:
        """The template of a conversation that asks for `name`, or for none. Raises ChatTemplateError."""
        if self._default is None:
            return None
        return self.chat_templates[chosen_name(self.chat_templates, self._default, name, with_tools)]

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
        with failures_named("tokenizer", "the text cannot be tokenized"):
            ids: list[int] = self._backend.encode(clean, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`. Bytes that make no character become U+FFFD; ids outside the vocabulary become nothing."""
        with failures_named("tokenizer", "the tokens cannot be decoded"):
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
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation as the model expects it, ready to be continued.

        Args:
            messages: each with `role` and `content`, oldest first. A content is text or a list of text parts; the
                template gets the form that it takes. Turns that it would refuse or drop are moved or merged.
            chat_template: which of `chat_templates`, by name; None for the model's default, or `tool_use` with `tools`.
            variables: more for the template, such as `tools` or `enable_thinking`.

        Raises:
            ChatTemplateError: there is no template, or it refuses these messages.
        """
        return self.encode(
            self.render_chat_template(
                messages, add_generation_prompt=add_generation_prompt, chat_template=chat_template, **variables
            ),
            add_special_tokens=False,
        )

    def render_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The same as text. Raises ChatTemplateError."""
        if self._default is None:
            raise ChatTemplateError(
                "this model has no chat template", field="messages", fix="Use /v1/completions, or give a template file"
            )
        name = chosen_name(self.chat_templates, self._default, chat_template, bool(variables.get("tools")))
        source, forms = self.chat_templates[name], self._forms[name]

        def written(conversation: list[dict[str, Any]], **options: Any) -> str:
            return str(self._fast.apply_chat_template(conversation, chat_template=source, tokenize=False, **options))

        def probe(conversation: list[dict[str, Any]]) -> str:
            options = {**variables, "add_generation_prompt": False, "continue_final_message": False}
            return written(conversation, **options)

        def render(conversation: Sequence[Mapping[str, Any]]) -> str:
            shaped = forms.shaped(conversation, probe)
            return written(shaped, **variables, add_generation_prompt=add_generation_prompt)

        try:
            turns = self._turns[name].arranged(
                messages,
                lambda given: probe(forms.shaped(given, probe)),
                lambda given: written(forms.shaped(given, written)),
            )
            try:
                return render(turns)
            except Exception as refusal:
                together = merged(turns)
                if len(together) == len(turns) or isinstance(refusal, MemoryError):
                    raise
                with contextlib.suppress(Exception):
                    return render(together)
                # The template's words for what was sent.
                raise
        except ChatTemplateError:
            raise
        except Exception as error:  # A template is a program of the checkpoint's author: anything may come out of it.
            reason = str(error).strip().splitlines()
            raise ChatTemplateError(
                f"the model's chat template refuses these messages: {(reason or [type(error).__name__])[0][:300]}",
                field="messages",
            ) from error

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template, as transformers reads them."""
        self._fast.save_pretrained(folder)
        # The name every release of transformers knows; the newest writes one that older ones refuse.
        path = folder / "tokenizer_config.json"
        described = json.loads(path.read_text(encoding="utf-8"))
        write_object(path, {**described, "tokenizer_class": "PreTrainedTokenizerFast"})


def load_tokenizer(checkpoint: Checkpoint, chat_template_path: Path | str | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint of either format. Offline, and no code of the checkpoint is run.

    Args:
        chat_template_path: a Jinja file to use in place of the checkpoint's template, or the name of one of the
            checkpoint's templates.

    Raises:
        CheckpointError: the tokenizer is missing, damaged, or needs code from the checkpoint; the chat template is
            neither a file nor one of the checkpoint's.
    """
    again = "Download tokenizer.json and tokenizer_config.json again"
    with failures_named(str(checkpoint.path), "the tokenizer cannot be read", again):
        fast = _from_gguf(checkpoint) if checkpoint.format == "gguf" else _from_folder(checkpoint.path)
        check_processor(fast.backend_tokenizer, str(checkpoint.path))
    templates = named_templates(fast.chat_template)
    wanted = None if chat_template_path is None else str(chat_template_path)
    if wanted is not None and (wanted not in templates or Path(wanted).is_file()):
        fast.chat_template = _read_template(Path(wanted), templates)
        wanted = None
    elif wanted is None and len(templates) > 1 and "default" not in templates:
        log.warning(
            "the checkpoint has the chat templates %s and no default: %s is used. --chat-template NAME chooses "
            "another, and so does the field chat_template of a request", ", ".join(templates), default_name(templates),
        )  # fmt: skip
    return Tokenizer(fast, end_token_ids(fast, checkpoint.config, checkpoint.generation_config), wanted)


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
        check_files(folder)
        check_parts(folder)
        return fast.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if (folder / "tokenizer.model").is_file():
        from plimsoll.checkpoint.sentencepiece_model import build_tokenizer

        return build_tokenizer(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        from plimsoll.checkpoint import vocab_merges

        return vocab_merges.build_tokenizer(folder)
    raise CheckpointError(
        "holds no tokenizer: neither tokenizer.json, nor tokenizer.model, nor vocab.json with merges.txt",
        field=str(folder), fix="Complete the download",
    )  # fmt: skip


def _read_template(path: Path, names: Mapping[str, str]) -> str:
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise CheckpointError(f"is larger than {MAX_TEMPLATE_BYTES} bytes", field=str(path))
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        own = f"Give a Jinja file, or a name that the checkpoint has: {', '.join(names)}" if names else ""
        raise CheckpointError(f"the chat template cannot be read: {error}", field=str(path), fix=own or None) from None


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
