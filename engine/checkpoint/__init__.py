"""Checkpoints: what a run writes, what it goes on from, and exchange with other formats.

weights.py      tensors from files into a model, with a report of every key
torchscript.py  the tensors of a TorchScript archive, without its code
description.py  what has to be known to build the model again
saving.py       a run's checkpoints: written beside, verified, then put in their place
manifest.py     which checkpoints are there, and whether they are whole
shards.py       DeepSpeed's shards, read one parameter at a time whatever number of ranks wrote them
original.py     the files of the original code
state.py        where a run goes on from, of either kind, and into the engine
answers.py      an answer head for another answer table
pretrained.py   a folder with safetensors, configuration and model card, such as BEST
"""

from engine.checkpoint.formats.pretrained import load_pretrained

__all__ = ["load_pretrained"]
