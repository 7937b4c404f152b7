"""Many LoRA models on one base: from order to signed receipt."""
