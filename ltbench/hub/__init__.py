"""Trained models on the Hugging Face Hub: find, fetch, load, publish."""
