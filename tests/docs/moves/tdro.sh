TOTAL_BATCH_SIZE=2048
accelerate launch --config_file config/fsdp_full_shard.yaml --num_machines 1 --num_processes 8 \
  run.py \
  --do_train \
  --model_type EncoderModel \
  --model_name_or_path Qwen/Qwen1.5-0.5B \
  --ref_model_name_or_path results/s0_train_baseline_model \
  --output_dir results/s1_tdro \
  --preprocessed_dir data/retrieval/dedup \
  --domain_config_path config/uniform_sampling_s0.json \
  --dro_type DROModelv2 --dro_only_hn --dro_optimizer sgd --reweight_eta 2e-2 \
  --dro_lr_scheduler_type constant --dro_apply_grad_norm --dro_max_grad_norm 1.0 \
  --normalize_group_loss_scale_with_ref_loss --normalize_weights_on_every_update \
  --add_prompt --prompt_type e5 \
  --pooling_strategy lasttoken --score_function cos_sim --temperature 0.002 \
  --q_max_len 128 --p_max_len 512 --train_n_passages 8 \
  --per_device_train_batch_size $((TOTAL_BATCH_SIZE/4/8)) --gradient_accumulation_steps 4 \
  --gradient_checkpointing --bf16 --optim adamw_torch_fused --weight_decay 0.1 \
  --learning_rate 1e-4 --lr_scheduler_type cosine --min_lr_ratio 0.1 --warmup_steps 100 --max_steps 1000 \
  --logging_steps 2 --save_steps 20000 --seed 42 --report_to tensorboard
