"""The model: a CLIP ResNet under a BERT that reads the caption and the sampled grid as one sequence."""
