"""A model behind HTTP: entity keys come in, their features are looked up, predictions go out."""
