"""One model shared out among processes by torch's FSDP2: rank 0 runs the study, the others do what it says."""
