"""What happens beside the loop: reports, checkpoints, validations."""
