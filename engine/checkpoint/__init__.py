"""Checkpoints: what a run writes, what it goes on from, and the formats of others.

weights.py      tensors from files into a model, with a report of every key
description.py  what has to be known to build the model again
saving.py       a run's checkpoints: written beside, verified, then put in their place
manifest.py     which checkpoints are there, and whether they are whole
shards.py       DeepSpeed's shards, read one parameter at a time whatever number of ranks wrote them
state.py        what a training starts from, whoever wrote it, as one kind of object
restoring.py    what it remembers of optimisers and schedules, back into DeepSpeed's engine
answers.py      an answer head for another answer table
formats/        the original's files; CLIP and BERT as published; a folder with safetensors, such as BEST
"""

from engine.checkpoint.state import load_pretrained

__all__ = ["load_pretrained"]
