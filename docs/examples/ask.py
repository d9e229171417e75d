"""Ask a trained model about an image.

python docs/examples/ask.py snap/demo/vqa/BEST photo.jpg "what color is the ring ?"
"""

import sys

import engine

folder, image, question = sys.argv[1:]
model = engine.load_pretrained(folder)
for answer, probability in model.answer(image, question, top_k=5):
    print(f"{probability:.3f}  {answer}")
