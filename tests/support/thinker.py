"""A tiny model that thinks before it answers, and says the same at every greedy turn: each token has one successor."""

import itertools
import json
from pathlib import Path
from typing import Any

import torch

from tests.support.checkpoints import TURN_END, VOCAB_SIZE, make_model, tokenizer_json, write_tokenizer

#: Not hidden from texts, as in Qwen3's vocabulary.
BEGIN, END, CALL = range(VOCAB_SIZE, VOCAB_SIZE + 3)
THOUGHT, ANSWER = "abcdefgh", "YOU"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant>{% if opened %}<think>{% endif %}"
    "{% if calling %}={% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def make_thinker(folder: Path) -> Path:
    """A Llama whose attention and MLP add nothing, so that a token's successor depends on that token alone.

    After `=` it begins a call by `<tool_call>`, and goes on at random. After `>` it writes `<think>`, `THOUGHT`,
    `</think>`, a new line, `ANSWER` and its end of text.
    """
    model = make_model("LlamaForCausalLM", vocab_size=VOCAB_SIZE + 3, max_position_embeddings=1024)
    folder.mkdir(parents=True)
    write_tokenizer(folder, chat_template=TEMPLATE)
    state: dict[str, Any] = json.loads(tokenizer_json())
    for token, text in ((BEGIN, "<think>"), (END, "</think>"), (CALL, "<tool_call>")):
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        state["added_tokens"].append({"id": token, "content": text, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(state))
    # The byte-level alphabet spells these characters as they are, and the new line as Ċ.
    ids = state["model"]["vocab"]
    chain = [ids[">"], BEGIN, *(ids[letter] for letter in THOUGHT), END, ids["Ċ"]]
    chain += [*(ids[letter] for letter in ANSWER), TURN_END]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        embedding = torch.nn.functional.normalize(model.model.embed_tokens.weight, dim=1)
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.mul_(0.01)
        for token, after in [*itertools.pairwise(chain), (ids["="], CALL)]:
            model.lm_head.weight[after] = 4 * embedding[token]
    model.save_pretrained(folder)
    return folder
