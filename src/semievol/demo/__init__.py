"""The embedded tasks and the embedded base model."""
