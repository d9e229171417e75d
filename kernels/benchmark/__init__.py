"""Times kernels.grid_subsample beside other ways to do the same: python -m kernels.benchmark."""
