"""launch/pretrain.py on a CPU that says it supports fp16: DeepSpeed's fp16 path then runs whole."""

from deepspeed.accelerator import get_accelerator

import engine.distributed.device
from launch.pretrain import main

get_accelerator().is_fp16_supported = lambda: True
engine.distributed.device.fp16_is_supported = lambda: True

if __name__ == "__main__":
    main()
