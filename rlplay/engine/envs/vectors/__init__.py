"""What is common to vector environments on the host and to those that give torch tensors."""
