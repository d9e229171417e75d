"""DeepSpeed's settings for each precision, zero2_{fp32,fp16,bf16}.json: what a training takes without
--deepspeed_config, and what lies under a file of one's own. engine/configuration/deepspeed.py finds them here."""
