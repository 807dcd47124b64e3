"""SemiEvol: semi-supervised fine-tuning of language models (arXiv:2410.14745)."""

__version__ = "0.1.0"
