"""Keys of a Hugging Face config.json that change no logit in any family; tests ask transformers' own classes."""

OF_THE_FILE = """architectures model_type transformers_version torch_dtype dtype _name_or_path name_or_path _commit_hash
    tokenizer_class prefix _from_model_config transformers.js_config unsloth_version unsloth_fixed"""
OF_TOKENS = """bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id decoder_start_token_id bos_token
    eos_token pad_token model_max_length n_ctx n_special predict_special_tokens"""
OF_TRAINING = """initializer_range initializer_factor attn_pdrop embd_pdrop resid_pdrop attention_dropout hidden_dropout
    classifier_dropout attention_probs_dropout_prob hidden_dropout_prob gradient_checkpointing loss_type"""
OF_OTHER_HEADS = """summary_type summary_use_proj summary_activation summary_first_dropout summary_proj_to_labels
    id2label label2id num_labels _num_labels problem_type finetuning_task task_specific_params"""
OF_OUTPUTS = """output_attentions output_hidden_states output_past output_scores output_logits return_dict
    return_dict_in_generate tie_last_hidden_states num_logits_to_keep"""
OF_HOW_IT_IS_COMPUTED = """use_cache cache_implementation reorder_and_upcast_attn attn_implementation
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal chunk_size_feed_forward
    pretraining_tp torchscript use_bfloat16 xla_device tf_legacy_loss tie_encoder_decoder is_llama_config
    _sliding_window_pattern"""
OF_GENERATION = """
    max_length max_new_tokens min_length min_new_tokens max_time stop_strings do_sample early_stopping
    num_beams num_beam_groups diversity_penalty temperature top_k top_p min_p top_h typical_p epsilon_cutoff
    eta_cutoff repetition_penalty encoder_repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size
    bad_words_ids force_words_ids constraints renormalize_logits forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sequence_bias
    token_healing guidance_scale watermarking_config num_return_sequences use_mtp cache_config max_cache_len
    is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
    assistant_lookbehind target_lookbehind assistant_early_exit assistant_ensemble_weight prompt_lookup_num_tokens
    max_matching_ngram_size speculation_type compile_config disable_compile continuous_batching_config low_memory
    penalty_alpha dola_layers prefill_chunk_size"""

IGNORED_KEYS = frozenset(
    " ".join(
        (
            OF_THE_FILE,
            OF_TOKENS,
            OF_TRAINING,
            OF_OTHER_HEADS,
            OF_OUTPUTS,
            OF_HOW_IT_IS_COMPUTED,
            OF_GENERATION,
        )
    ).split()
)
