"""A trained model that takes images and sentences: engine.load_pretrained.

pretrained.py     the model: answers, words in the place of [MASK], whether image and sentence belong together, features
reading.py        what comes of one sentence beside its image
features.py       what comes of several before any head
feature_file.py   the same in a file, larger than memory
pixels.py         images from wherever they come, as the model was trained to see them
attention.py      where the words look
"""
