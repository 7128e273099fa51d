"""The names that keys had in earlier releases and have in other trainers, each with the key of the same meaning."""

from __future__ import annotations

__all__ = ["ELSEWHERE", "MAIN_KEYS", "RENAMED"]

RENAMED = {
    "output": "output.dir",
    "adapter.targets": "adapter.target_modules",
    "adapter.text_encoder.targets": "adapter.text_encoder.target_modules",
    "adapter.text_encoder.rate": "adapter.text_encoder.learning_rate",
    "objective.timesteps": "objective.timestep_density",
    "objective.gamma": "objective.snr_gamma",
    "train.steps": "train.max_steps",
    "train.batch": "train.batch_size",
    "train.accumulate": "train.gradient_accumulation_steps",
    "train.optimizer.rate": "train.learning_rate",
    "train.schedule": "train.lr_scheduler",
    "train.warmup": "train.warmup_steps",
    "train.ema": "train.ema_decay",
    "train.quantize": "train.quantization",
    "train.keep": "train.keep_checkpoints",
    "evaluate": "validation",
    "evaluate.draws": "validation.draws",
    "evaluate.pictures": "validation.pictures",
    "evaluate.every": "validation.every",
    "evaluate.patience": "validation.patience",
}
"""Keys of earlier releases, dotted, and what each is called now; ``output`` was a plain path."""

MAIN_KEYS = {
    "output": "output.dir",
    "data": "data.sources",
    "data.prior": "data.prior.prompt",
    "train.optimizer": "train.optimizer.name",
}
"""Sections that get a plain value where people do not know that they are sections, and the key that it is for."""

_MODEL_AND_OUTPUT = {
    "base_model_name": "base",
    "model": "base",
    "model_name_or_path": "base",
    "name_or_path": "base",
    "pretrained_model_name_or_path": "base",
    "output_dir": "output.dir",
    "output_model_destination": "output.dir",
    "training_folder": "output.dir",
}

_DATA = {
    "concept_file_name": "data.sources",
    "data_backend_config": "data.sources",
    "dataset": "data.sources",
    "datasets": "data.sources",
    "folder_path": "data.sources",
    "image_dir": "data.sources",
    "instance_data_dir": "data.sources",
    "num_repeats": "data.sources",
    "train_data_dir": "data.sources",
    "class_tokens": "data.trigger",
    "instance_prompt": "data.trigger",
    "trigger_word": "data.trigger",
    "validation_split": "data.held_out",
    "center_crop": "data.crop",
    "random_crop": "data.crop",
    "flip_aug": "data.flip",
    "random_flip": "data.flip",
    "caption_dropout_probability": "data.caption_dropout",
    "caption_dropout_rate": "data.caption_dropout",
    "proportion_empty_prompts": "data.caption_dropout",
    "cache_latents": "data.cache",
    "cache_latents_to_disk": "data.cache",
    "latent_caching": "data.cache",
    "with_prior_preservation": "data.prior",
    "class_data_dir": "data.prior.path",
    "reg_data_dir": "data.prior.path",
    "class_prompt": "data.prior.prompt",
    "num_class_images": "data.prior.count",
    "prior_loss_weight": "data.prior.weight",
}

_ADAPTER_AND_OBJECTIVE = {
    "network": "adapter",
    "network_module": "adapter.method",
    "peft_type": "adapter.method",
    "dim": "adapter.rank",
    "linear": "adapter.rank",
    "lora_rank": "adapter.rank",
    "network_dim": "adapter.rank",
    "linear_alpha": "adapter.alpha",
    "lora_alpha": "adapter.alpha",
    "network_alpha": "adapter.alpha",
    "dropout_probability": "adapter.dropout",
    "lora_dropout": "adapter.dropout",
    "network_dropout": "adapter.dropout",
    "layer_filter": "adapter.target_modules",
    "train_text_encoder": "adapter.text_encoder",
    "text_encoder_lr": "adapter.text_encoder.learning_rate",
    "timestep_distribution": "objective.timestep_density",
    "loss_weight_fn": "objective.weighting",
    "loss_weight_strength": "objective.snr_gamma",
    "min_snr_gamma": "objective.snr_gamma",
}

_TRAINING = {
    "epochs": "train.max_steps",
    "max_train_epochs": "train.max_steps",
    "max_train_steps": "train.max_steps",
    "num_train_epochs": "train.max_steps",
    "steps": "train.max_steps",
    "train_batch_size": "train.batch_size",
    "gradient_accumulation": "train.gradient_accumulation_steps",
    "lr": "train.learning_rate",
    "unet_lr": "train.learning_rate",
    "optimizer_type": "train.optimizer.name",
    "use_8bit_adam": "train.optimizer.name",
    "adam_weight_decay": "train.optimizer.weight_decay",
    "adam_beta1": "train.optimizer.betas",
    "adam_beta2": "train.optimizer.betas",
    "adam_epsilon": "train.optimizer.epsilon",
    "learning_rate_scheduler": "train.lr_scheduler",
    "learning_rate_warmup_steps": "train.warmup_steps",
    "lr_warmup_steps": "train.warmup_steps",
    "clip_grad_norm": "train.max_grad_norm",
    "ema_config": "train.ema_decay",
    "use_ema": "train.ema_decay",
    "dtype": "train.precision",
    "mixed_precision": "train.precision",
    "train_dtype": "train.precision",
    "gradient_checkpointing": "train.memory",
    "base_model_precision": "train.quantization",
    "fp8_base": "train.quantization",
    "backup_after": "train.checkpoint_every",
    "checkpoint_step_interval": "train.checkpoint_every",
    "checkpointing_steps": "train.checkpoint_every",
    "save_every": "train.checkpoint_every",
    "save_every_n_steps": "train.checkpoint_every",
    "checkpoints_total_limit": "train.keep_checkpoints",
    "max_step_saves_to_keep": "train.keep_checkpoints",
}

_PICTURES_AND_TRACKING = {
    "sample_after": "sample.every",
    "sample_every": "sample.every",
    "sample_every_n_steps": "sample.every",
    "sample_prompts": "sample.prompts",
    "validation_prompt": "sample.prompts",
    "num_inference_steps": "sample.steps",
    "sample_steps": "sample.steps",
    "validation_num_inference_steps": "sample.steps",
    "guidance_scale": "sample.guidance",
    "validation_guidance": "sample.guidance",
    "validate_after": "validation.every",
    "validate_every_n_steps": "validation.every",
    "log_with": "tracking.trackers",
    "report_to": "tracking.trackers",
    "log_tracker_name": "tracking.project",
    "tracker_project_name": "tracking.project",
    "wandb_project": "tracking.project",
}

ELSEWHERE = _MODEL_AND_OUTPUT | _DATA | _ADAPTER_AND_OBJECTIVE | _TRAINING | _PICTURES_AND_TRACKING
"""Names of settings in kohya's scripts, diffusers' scripts, ai-toolkit, OneTrainer and SimpleTuner, whatever their
section, and the key that one may have meant."""
