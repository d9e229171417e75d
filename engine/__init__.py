"""The CLIP-ViL training engine."""

import logging

# Said by DeepSpeed on standard output, the first as soon as it is imported: that there is no GPU (each program says
# what it runs on), and that it doesn't know our optimiser (tests/test_ranks.py does).
_NO_NEWS = ("Setting accelerator to CPU", "untested optimizer")
logging.getLogger("DeepSpeed").addFilter(lambda record: not any(part in record.getMessage() for part in _NO_NEWS))
