"""Turns a trained model into an ordinary Hugging Face checkpoint, a PEFT adapter, or both."""
