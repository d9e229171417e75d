"""A trained model that takes images and sentences: engine.load_pretrained.

pretrained.py   the model: answers, words in the place of [MASK], and whether image and sentence belong together
reading.py      what comes of one sentence beside its image
pixels.py       images from wherever they come, as the model was trained to see them
attention.py    where the words look
"""
