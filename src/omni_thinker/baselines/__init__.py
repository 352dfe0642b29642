"""What RL is compared with: supervised fine-tuning and model merging."""
