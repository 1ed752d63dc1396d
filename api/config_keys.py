"""The keys of a `config.json`: those that are read, those that change nothing, those that are refused.

A key that changes the function of a model and is ignored gives wrong answers without a word. So each key is in one of
three lists, for every family alike; a family file may read more (`Family.keys`). A key in none of them is reported
(`unknown_keys`). The lists hold what the configuration classes of transformers 4 and 5 and InternLM2's define, and what
published checkpoints carry.
"""

from collections.abc import Mapping
from typing import Any

from plimsoll.api.config_values import short
from plimsoll.api.errors import CheckpointError
from plimsoll.api.families.family import Family
from plimsoll.api.families.registry import all_families

#: Every key that facts are read from.
READ = (
    "architectures", "model_type", "hidden_act", "num_attention_heads", "num_key_value_heads", "hidden_size",
    "head_dim", "num_hidden_layers", "max_position_embeddings", "sliding_window", "use_sliding_window", "layer_types",
    "max_window_layers", "bias", "attention_bias", "mlp_bias", "vocab_size", "intermediate_size", "rms_norm_eps",
    "rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings", "partial_rotary_factor",
    "tie_word_embeddings", "dtype", "torch_dtype", "bos_token_id", "eos_token_id", "quantization_config",
    "compression_config",
)  # fmt: skip

#: Keys that the function does not depend on: training, bookkeeping, classifiers, how transformers computes.
HARMLESS = frozenset(
    # Bookkeeping of files and versions.
    "_name_or_path name_or_path _commit_hash transformers_version auto_map custom_pipelines tokenizer_class prefix "
    "task_specific_params finetuning_task problem_type id2label label2id num_labels classifier_dropout "
    "unsloth_fixed unsloth_version unsloth_training_args model_name model_max_length max_sequence_length max_seq_len "
    "seq_length vocab_file eot_token_id pad_token pad_token_id sep_token_id unk_token_id decoder_start_token_id "
    "torchscript license version base_model_name is_llama_config transformers.js_config "
    # Training.
    "initializer_range attention_dropout hidden_dropout hidden_dropout_prob attention_probs_dropout_prob resid_pdrop "
    "embd_pdrop attn_pdrop dropout embedding_dropout ffn_dropout residual_dropout gradient_checkpointing "
    "router_aux_loss_coef output_router_logits neftune_noise_alpha z_loss_weight "
    # How it is computed, not what.
    "use_cache pretraining_tp chunk_size_feed_forward attn_implementation _attn_implementation "
    "_attn_implementation_autoset _attn_implementation_internal _experts_implementation _flash_attn_2_enabled "
    "experts_implementation use_flash_attn use_flash_attention use_bfloat16 fp16 bf16 fp32 tensor_parallel tp_plan "
    "ep_size rope_cache cache_implementation return_dict use_return_dict output_attentions output_hidden_states "
    "tie_last_hidden_states tie_encoder_decoder tf_legacy_loss cross_attention_hidden_size is_decoder "
    "keys_to_ignore_at_inference num_logits_to_keep "
    # Without experts (`REFUSED`) there is nothing that these describe.
    "num_experts_per_tok moe_intermediate_size norm_topk_prob decoder_sparse_step mlp_only_layers "
    # Generation defaults, which older transformers kept here.
    "max_length min_length max_new_tokens min_new_tokens do_sample early_stopping num_beams num_beam_groups "
    "diversity_penalty temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty "
    "length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size encoder_repetition_penalty bad_words_ids "
    "force_words_ids num_return_sequences output_scores output_logits return_dict_in_generate forced_bos_token_id "
    "forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens "
    "renormalize_logits constraints forced_decoder_ids sequence_bias guidance_scale low_memory watermarking_config "
    "penalty_alpha dola_layers max_time stop_strings token_healing num_assistant_tokens "
    "num_assistant_tokens_schedule".split()
)

#: Keys that ask for a function that is not run, and the values with which they ask for nothing. Null never does.
REFUSED: Mapping[str, tuple[object, ...]] = {
    # Switches.
    **dict.fromkeys(
        "rope_interleave rope_interleaved rotary_interleaved use_mrope use_dynamic_ntk use_logn_attn alibi use_alibi "
        "use_bidirectional_attention bidirectional add_cross_attention is_encoder_decoder qk_norm use_qk_norm "
        "qk_layernorm use_qk_layernorm attention_sink attention_sink_size attn_temperature_tuning "
        "use_differential_attention scale_embeddings lm_head_bias mup_enabled parallel_attn use_parallel_residual "
        "add_bias_linear use_post_norm norm_after n_routed_experts hidden_size_per_layer_input".split(),
        (False,),
    ),
    # Factors of positions, of the residual, of embeddings and of logits.
    **dict.fromkeys(
        "rotary_pct rotary_percent rotary_dim_factor rope_ratio embedding_multiplier residual_multiplier "
        "logits_scaling logit_scale scale_emb embedding_scale lm_head_multiplier output_multiplier_scale "
        "embedding_multiplier_scale".split(),
        (1,),
    ),
    # These are ignored with any value.
    **dict.fromkeys(
        "mrope_section no_rope_layer_interval nope_layer_interval rope_local_base_freq query_pre_attn_scalar "
        "attention_multiplier attn_scale attn_logit_softcapping attention_softcap clip_qkv attention_chunk_size "
        "interleaved_sliding_window sliding_window_pattern final_logit_softcapping logits_soft_cap scale_depth "
        "block_configs text_config llm_config vision_config audio_config quantization".split(),
        (),
    ),
    # Phi's: what its code computes at 1.
    **dict.fromkeys(("full_attn_mod", "interpolate_factor"), (1,)),
    **dict.fromkeys(("hidden_activation", "activation"), ("silu", "swish", "swiglu")),
    **dict.fromkeys(("num_experts", "num_local_experts"), (0, 1)),
    **dict.fromkeys(("pruned_heads", "per_layer_config", "no_rope_layers"), ({}, [])),
    **dict.fromkeys(("is_causal", "use_rope"), (True,)),
    "position_embedding_type": ("rope", "rotary", "absolute"),
    "layer_norm_type": ("rms", "rmsnorm"),
}


def read_keys() -> tuple[str, ...]:
    """Every key that the facts of some family are read from."""
    return tuple(dict.fromkeys([*READ, *(key for family in all_families().values() for key in family.keys)]))


def refuse_keys(config: Mapping[str, Any], family: Family) -> None:
    """Raises CheckpointError for a key that asks for a function that `family` does not run, by its name."""
    for key, inert in REFUSED.items():
        value = None if key in family.keys else config.get(key)
        # True and 1, and False and 0, are equal in Python, and mean the same in a configuration.
        if value is not None and value not in inert:
            raise CheckpointError(
                "changes what the model computes, and is not run", field=key, value=short(value),
                fix="Serve a checkpoint without it; if the weights were trained without it, delete the key",
            )  # fmt: skip


def unknown_keys(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys in none of the three lists nor in the family's. They are not read: they may ask for another function."""
    names = config.get("architectures")
    family = all_families().get(names[0]) if isinstance(names, list | tuple) and names else None
    known = {*READ, *(family.keys if family else ()), *HARMLESS, *REFUSED}
    return tuple(key for key, value in config.items() if value is not None and key not in known)


def refuse_other_model_type(config: Mapping[str, Any], family: Family) -> None:
    """Raises CheckpointError where `model_type` names another family: transformers goes by it."""
    named = config.get("model_type")
    meant = next((other for other in all_families().values() if other.model_type == named), family)
    if meant.model_type == family.model_type:
        return
    ours, theirs = family.architecture, meant.architecture
    raise CheckpointError(
        f"is not the type of {ours}, which is {family.model_type}", field="model_type", value=named,
        fix=f"Set model_type to {family.model_type}, or architectures to {theirs}, whichever the weights are of",
    )  # fmt: skip
