"""What a steered model predicts, as losses, and the gradient search over them."""
