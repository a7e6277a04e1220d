"""Keys and values of other trainers (LLaMA-Factory, axolotl, TRL with Trainer, ms-swift) and ours for them.

For messages about unknown keys and values; docs/recipes.md shows the same table. Nothing is translated silently: a key
with the same name may count rows where ours counts tokens.
"""

from __future__ import annotations

from collections.abc import Mapping


def _by_theirs(table: Mapping[str, str]) -> dict[str, str]:
    """Their word -> ours, from: ours -> their words, separated by spaces."""
    return {theirs: ours for ours, words in table.items() for theirs in words.split()}


# Our key, with the value if it is certain: their keys.
COUNTERPARTS: Mapping[str, str] = _by_theirs(
    {
        "model.path": (
            "base_model model_name_or_path model_id_or_path model_name model_id pretrained_model_name_or_path model"
        ),
        "model.revision": "model_revision",
        "model.tokenizer": "tokenizer_config tokenizer_name tokenizer_name_or_path",
        "model.attention": "attn_implementation attn_impl flash_attn flash_attention use_flash_attn",
        "model.attention: sdpa": "sdp_attention",
        "model.trust_remote_code": "trust_remote_code",
        "model.gradient_checkpointing": "activation_checkpointing",
        "model.init: random": "train_from_scratch reinit_weights",
        "data.train": (
            "dataset datasets dataset_name dataset_mixer data_path train_file train_files custom_train_dataset_path "
            "pretraining_dataset"
        ),
        "data.validation": "val_dataset eval_dataset test_datasets validation_file custom_val_dataset_path",
        "data.validation_fraction": "val_size val_set_size split_dataset_ratio dataset_test_ratio",
        "data.max_length_tokens": (
            "cutoff_len sequence_len max_length max_seq_length max_seq_len model_max_length block_size "
            "max_prompt_length"
        ),
        "data.chat_template": "template template_type chat_template chat_template_path chat_template_jinja",
        "data.system_prompt": "default_system default_system_message system",
        "data.train[0].fraction": "max_samples",
        "data.train[0].weight": "interleave_probs mix_strategy",
        "data.workers": "preprocessing_num_workers dataset_num_proc dataset_processes num_proc",
        "data.cache_folder": "dataset_prepared_path tokenized_path",
        "data.streaming": "dataset_streaming streaming",
        "data.streaming_window_rows": "buffer_size",
        "batch.tokens_per_micro_batch": "per_device_train_batch_size per_gpu_train_batch_size micro_batch_size",
        "batch.tokens_per_step": "gradient_accumulation_steps global_batch_size train_batch_size batch_size",
        "batch.layout: packed": "packing sample_packing neat_packing padding_free",
        "batch.layout: padded": "group_by_length",
        "batch.shuffle": "shuffle_dataset shuffle_merged_datasets",
        "batch.shuffle: false": "disable_shuffling",
        "tuning.kind": "finetuning_type adapter tuner_type train_type sft_type",
        "tuning.kind: lora": "use_peft",
        "tuning.quantization: nf4": "load_in_4bit",
        "tuning.quantization: int8": "load_in_8bit",
        "tuning.quantization": "quantization_bit quant_bits bnb_4bit_quant_type",
        "tuning.double_quantization": "double_quant double_quantization use_bnb_nested_quant bnb_4bit_use_double_quant",
        "tuning.lora.rank": "lora_r lora_rank r",
        "tuning.lora.alpha": "lora_alpha",
        "tuning.lora.dropout": "lora_dropout lora_dropout_p",
        "tuning.lora.targets": "lora_target lora_target_modules target_modules",
        "tuning.lora.targets: all-linear": "lora_target_linear",
        "tuning.lora.bias": "lora_bias",
        "tuning.lora.rslora": "use_rslora peft_use_rslora",
        "tuning.lora.dora": "use_dora peft_use_dora",
        "tuning.lora.modules_to_save": "additional_target lora_modules_to_save",
        "tuning.prompt.virtual_tokens": "num_virtual_tokens",
        "tuning.prompt.init_text": "prompt_tuning_init_text",
        "optim.learning_rate": "lr",
        "optim.name": "optim optimizer",
        "optim.beta1": "adam_beta1",
        "optim.beta2": "adam_beta2",
        "optim.epsilon": "adam_epsilon",
        "optim.clip_norm": "max_grad_norm gradient_clipping grad_clip",
        "optim.schedule": "lr_scheduler_type lr_scheduler lr_schedule",
        "optim.warmup_fraction": "warmup_ratio",
        "optim.final_fraction": "cosine_min_lr_ratio min_lr_ratio min_lr",
        "duration.max_epochs": "num_train_epochs num_epochs epochs",
        "duration.max_steps": "total_steps num_steps",
        "validation.every_steps": "eval_steps eval_strategy evaluation_strategy evals_per_epoch",
        "validation.at_start": "eval_on_start",
        "validation.metric": "metric_for_best_model",
        "validation.patience": "early_stopping_patience early_stop_interval",
        "validation.max_new_tokens": "eval_max_new_tokens",
        "checkpoint.every_steps": "save_steps save_strategy saves_per_epoch",
        "checkpoint.keep_last": "save_total_limit",
        "merge.checkpoint: best": "load_best_model_at_end",
        "merge.at_end": "merge_lora",
        "watch.every_steps": "logging_steps",
        "watch.tensorboard": "use_tensorboard",
        "run.folder": "output_dir logging_dir run_name overwrite_output_dir",
        "run.resume": "resume_from_checkpoint auto_resume_from_checkpoints",
        "run.precision: bf16": "bf16",
        "run.precision: fp16": "fp16",
        "model.weights: bfloat16": "pure_bf16",
        "run.precision": "mixed_precision torch_dtype dtype",
        "run.seed": "data_seed",
        "objective": "stage rl rlhf_type task_type",
        "ppo.reward": "reward_model reward_model_path reward_funcs",
        "ppo.epochs": "num_ppo_epochs ppo_epochs",
        "ppo.minibatches": "num_mini_batches",
        "ppo.samples_per_prompt": "num_generations",
        "ppo.kl_weight": "kl_coef init_kl_coef",
        "ppo.kl_target": "ppo_target",
        "ppo.clip": "cliprange",
        "ppo.value_clip": "cliprange_value",
        "ppo.value_weight": "vf_coef",
        "ppo.gae_lambda": "lam",
        "ppo.whiten": "ppo_whiten_rewards",
        "ppo.response_tokens": "response_length max_completion_length",
    }
)

# Our key -> how its value differs from theirs.
NOTES: Mapping[str, str] = {
    "model.trust_remote_code": "on the command line only",
    "batch.tokens_per_micro_batch": "in tokens, not rows",
    "batch.tokens_per_step": "tokens per step over all GPUs: rows x accumulation x length",
    "data.train": "a list of {path, format}",
    "data.validation": "a list of {path, format}",
    "data.train[0].fraction": "a share of the rows, not their number",
    "data.train[0].weight": "passes over this source per epoch",
    "data.chat_template": "tokenizer, the model's own, is the default; or plain, chatml, raw, a .jinja file",
    "data.validation_fraction": "a share of the rows, not their number",
    "optim.warmup_fraction": "a share of all steps",
    "optim.final_fraction": "a share of the peak learning rate",
    "validation.every_steps": "in steps; if not set, after each epoch",
    "checkpoint.every_steps": "in steps; if not set, after each epoch",
    "run.folder": "each run has its own folder, and the same command resumes it",
    "run.resume": "auto by default",
    "objective": "causal_lm for pre-training and SFT; reward_model, ppo, classifiers",
    "tuning.kind": "full, lora, prompt",
    "tuning.quantization": "nf4 or int8, with tuning.kind: lora",
    "ppo.reward": "a list of {kind, path, weight}",
    "optim.name": "adamw, adamw_8bit, adafactor",
    "optim.schedule": "cosine, linear, constant; each after a warmup",
}

# Why there is no such key: their keys.
NO_COUNTERPART: Mapping[str, str] = _by_theirs(
    {
        "not part of a recipe: set it with `accelerate launch --config_file accelerate_configs/NAME.yaml`": (
            "deepspeed deepspeed_config zero_stage fsdp fsdp_config fsdp_version ddp_backend accelerator_config "
            "num_processes local_rank use_cpu parallelism_config num_gpus nproc_per_node n_gpu nnodes devices"
        ),
        "not needed: see run.hang_seconds": "ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb",
        "not needed: metrics.jsonl and TensorBoard files are written into the run folder (watch.tensorboard)": (
            "report_to logging_strategy plot_loss logging_first_step"
        ),
        "not supported: runs send no data anywhere; metrics and TensorBoard files are in the run folder": (
            "wandb_project wandb_entity wandb_name wandb_run_id wandb_watch wandb_log_model wandb_mode use_wandb "
            "use_swanlab swanlab_project mlflow_tracking_uri project push_to_hub hub_model_id hub_token hub_strategy "
            "hub_private_repo"
        ),
        "not needed: in conversations only the answers are trained, in format text everything": (
            "train_on_prompt train_on_inputs assistant_only_loss completion_only_loss mask_history loss_scale "
            "roles_to_train train_on_eos dataset_kwargs"
        ),
        "not needed: the complete state is always saved, and the same command resumes the run": (
            "save_only_model save_safetensors save_on_each_node ignore_data_skip"
        ),
        "set the columns of each source: data.train[0].columns: {our field: your column}": (
            "dataset_text_field text_column field remove_unused_columns"
        ),
        "not supported: DPO, KTO, ORPO. Objectives that use preferences: reward_model and ppo (with ppo.kl_weight)": (
            "beta dpo_beta pref_beta pref_loss loss_type ref_model"
        ),
        "not needed: it is read from the model's folder": (
            "model_type tokenizer_type architectures special_tokens model_init_kwargs pad_token eos_token "
            "tokenizer_use_fast use_fast_tokenizer"
        ),
        "not needed: rows are tokenised before the first step and read from a memory-mapped cache (data.workers)": (
            "dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataloader_drop_last"
        ),
        "not needed: batch.layout decides it": (
            "pad_to_sequence_len pad_to_max_length pad_to_multiple_of eval_sample_packing eval_packing"
        ),
        "not needed: validation uses batch.tokens_per_micro_batch": (
            "per_device_eval_batch_size eval_batch_size eval_accumulation_steps"
        ),
        "not configurable: instruction rows are truncated at data.max_length_tokens, texts continue in a new row": (
            "packing_strategy truncation_mode truncation_strategy"
        ),
        "not needed: the loss is always computed in chunks, without storing all logits": (
            "use_liger_kernel enable_liger_kernel liger_kernel use_unsloth cut_cross_entropy"
        ),
        "not supported: PyTorch's defaults are used": "tf32 torch_compile xformers_attention",
        "not needed: train/main.py trains, `python -m eval` evaluates": (
            "do_train do_eval do_predict predict_with_generate"
        ),
        "not needed: there is no data set registry; list {path, format} in data.train": (
            "dataset_dir dataset_info media_dir"
        ),
        "not needed: the cache is keyed by content": "overwrite_cache load_from_cache_file",
        "not supported": (
            "gradient_checkpointing_kwargs use_reentrant_gc lr_scheduler_kwargs optim_args strict "
            "label_smoothing_factor label_smoothing log_level debug optim_target_modules"
        ),
        "not supported: a run resumes from its folder; to start from an adapter, merge it first": (
            "adapter_name_or_path lora_model_dir"
        ),
        "not supported: no noise is added to embeddings": "neftune_noise_alpha",
        "not needed: it follows from the objective": "lora_task_type",
        "not supported: only text models are trained": "freeze_vit",
        "not needed: peft is always used": "tuner_backend",
        "not needed: the objective defines it for its metrics": "greater_is_better",
        "not needed: progress bars appear only on terminals": "disable_tqdm",
        "not supported: put what the model should say about itself into the data": "model_author",
        "not needed: training keeps no key/value cache": "use_cache",
        "not needed: tokens are always counted": "include_num_input_tokens_seen",
        "not needed: the same run gives the same numbers (run.seed)": "full_determinism",
    }
)

# Our field of a source: theirs.
SOURCE_KEYS: Mapping[str, str] = _by_theirs(
    {
        "format": "type ds_type formatting",
        "path": "file_name data_files hf_hub_url ms_hub_url name dataset subset",
        "fraction": "num_samples ratio",
        "delimiter": "sep separator",
        "encoding": "charset",
        "filter": "where",
        "columns": "field_messages field message_property_mappings",
    }
)

# Our key -> our value: theirs.
VALUES: Mapping[str, Mapping[str, str]] = {
    "format": _by_theirs(
        {
            "io": "alpaca instruction",
            "qa": "alpaca_chat.load_qa context_qa",
            "chat": "sharegpt messages openai chatml chat_template conversation conversations",
            "text": "completion pretrain corpus pt",
            "pr": "prompt prompt_completion input_output",
            "labelled": "classification",
            "tagged": "ner",
            "preference": "dpo ranking chosen_rejected",
            "the format of a row, not of the file: text, qa, pr, io, chat": "json jsonl csv parquet",
        }
    ),
    "objective": _by_theirs(
        {
            "causal_lm": "sft pt pretrain clm",
            "reward_model": "rm",
            "ppo, with ppo.advantage: grpo": "grpo",
            "ppo, with ppo.advantage: rloo": "rloo",
            "sequence_classification": "seq_cls classification",
            "token_classification": "ner",
        }
    ),
    "tuning.kind": _by_theirs(
        {
            "lora, with tuning.quantization: nf4": "qlora",
            "lora, with tuning.lora.dora: true": "dora",
            "lora, with tuning.lora.rslora: true": "rslora",
            "prompt": "prompt_tuning",
            "full": "none",
            "full; single layers cannot be frozen": "freeze",
        }
    ),
    "tuning.quantization": _by_theirs(
        {
            "nf4": "4 4bit fp4 bnb",
            "int8": "8 8bit",
        }
    ),
    "optim.name": _by_theirs(
        {
            "adamw": "adam adamw_torch adamw_torch_fused adamw_hf paged_adamw_32bit",
            "adamw_8bit": "adamw_8bit adamw_bnb_8bit paged_adamw_8bit",
        }
    ),
    "optim.schedule": _by_theirs(
        {
            "constant, which has a warmup": "constant_with_warmup",
            "cosine, with optim.final_fraction": "cosine_with_min_lr",
            "cosine": "cosine_with_restarts",
            "linear": "polynomial",
        }
    ),
    "run.precision": _by_theirs(
        {
            "bf16": "bfloat16 fp8",
            "fp16": "float16 half",
            "fp32": "float32",
        }
    ),
    "model.weights": _by_theirs(
        {
            "bfloat16": "bf16",
            "float16": "fp16",
            "float32": "fp32",
        }
    ),
    "model.attention": _by_theirs(
        {
            "flash_attention_2": "flash_attn fa2",
            "flash_attention_3": "fa3",
            "sdpa": "eager",
        }
    ),
}
