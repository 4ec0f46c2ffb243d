INFONCE_MASK_FAKE_NEGATIVE=true \
nproc_per_node=8 \
swift sft \
  --model Qwen/Qwen3-Embedding-4B \
  --task_type embedding \
  --model_type qwen3_emb \
  --train_type lora \
  --dataset sentence-transformers/stsb:positive my_pairs.jsonl \
  --split_dataset_ratio 0.05 \
  --eval_strategy steps --eval_steps 20 \
  --output_dir output \
  --num_train_epochs 5 --save_steps 20 \
  --per_device_train_batch_size 4 --per_device_eval_batch_size 4 \
  --gradient_accumulation_steps 4 \
  --learning_rate 6e-6 \
  --loss_type infonce \
  --label_names labels \
  --dataloader_drop_last true \
  --deepspeed zero3
