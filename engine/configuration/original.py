"""What the original's launch scripts always pass, and is always so here."""

# Flag -> (accepted values, reason for refusing others).
# A flag without a value counts as "true".
ORIGINAL_CONSTANTS: dict[str, tuple[tuple[str, ...], str]] = {
    "use_clip": (("true",), "the backbone is always a CLIP ResNet"),
    "visualbert_style": (("true",), "one encoder always reads words and image together"),
    "input_raw_images": (("true",), "features are always computed from images"),
    "vqa_style_transform": (("true",), "images are always resized by their short side"),
    "add_zero_padding": (("true",), "images are always padded to one size"),
    "distributed": (("true",), "DeepSpeed always runs the ranks; start one with --num_gpus 1"),
    "multiGPU": (("true",), "DeepSpeed always runs the ranks"),
    "tqdm": (("true",), "progress is always shown"),
    "compress_data": (("true",), "annotations are always in the shared store"),
    "use_separate_optimizer_for_visual": (("true",), "SGD always trains the backbone"),
    "optim": (("bert",), "AdamW always trains the transformer"),
    "llayers": (("12",), "the number of layers is that of the --bert configuration"),
    "xlayers": (("0",), "there are no cross-modality layers"),
    "rlayers": (("0",), "there are no object-relationship layers"),
    "visualLosses": (
        ("obj,attr,feat", "obj,attr", "obj", "attr", "feat", ""),
        "objects are not predicted, so none is used",
    ),
    "objMaskRate": (("0.0", "0", "0."), "objects are not masked"),
    "test": (("",), "launch/predict_vqa.py predicts and scores"),
    "fp16_opt_level": (("O1",), "fp16 always keeps fp32 masters and batch norm, as O1 did"),
}
SNAKE_CASE = {"visualLosses": "visual_losses", "objMaskRate": "obj_mask_rate", "multiGPU": "multi_gpu"}
