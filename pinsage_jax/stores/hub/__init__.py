"""The vectors as a repository of the Hugging Face hub: a folder with a model card, its upload."""
