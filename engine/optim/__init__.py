"""One optimiser for ZeRO-2 that runs AdamW on the transformer and SGD on the backbone."""
